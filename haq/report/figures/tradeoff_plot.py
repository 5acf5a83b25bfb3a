"""Accuracy against each metric as a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from haq.report.figures.style import ACCENT, INK, MUTED, PAGE_WIDTH, label, new_figure, styled
from haq.report.figures.tradeoff import Panel, Point, TradeoffData, score_range
from haq.report.units import unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class _Marker:
    text: str
    shape: str
    color: str
    size: float
    hollow: bool = False

    @property
    def drawn(self) -> dict[str, Any]:
        face, edge = ("white", self.color) if self.hollow else (self.color, "white")
        width = 1.0 if self.hollow else 0.5
        return {
            "linestyle": "",
            "marker": self.shape,
            "markersize": self.size,
            "color": face,
            "markeredgecolor": edge,
            "markeredgewidth": width,
        }


_FLOAT_LINE: dict[str, Any] = {"color": MUTED, "linewidth": 1.0, "linestyle": (0, (5, 3))}
_BUDGET_LINE: dict[str, Any] = {"color": ACCENT, "linewidth": 1.1, "linestyle": (0, (2, 2))}
_MARKERS = {
    "trial": _Marker("measured policy", "o", "#8a93a0", 3.5),
    "reference": _Marker("uniform bits", "s", MUTED, 4.5, hollow=True),
    "uniform": _Marker("best uniform within budget", "s", "#0072b2", 7),
    "greedy": _Marker("greedy", "^", "#009e73", 7.5),
    "answer": _Marker("answer", "*", "#d55e00", 14),
}


@styled
def plot_tradeoff(data: TradeoffData) -> Figure:
    """One panel per metric, up to three side by side; scores far below the rest are drawn at the lower edge."""
    columns = min(3, max(1, len(data.panels)))
    rows = max(1, math.ceil(len(data.panels) / columns))
    figure = new_figure(0.7 + 3.1 * rows, width=(6.5, 8.5, PAGE_WIDTH)[columns - 1])
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    low, high = _score_range(data)
    for axes, panel in zip(grid.flat, data.panels, strict=False):
        _panel(axes, panel, data, low=low, high=high)
        axes.set_ylim(low - 0.04 * (high - low), high + 0.06 * (high - low))
    for axes in list(grid.flat)[len(data.panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(label(data.axis))
    _legend(figure, data)
    return figure


def _score_range(data: TradeoffData) -> tuple[float, float]:
    lines = [value for value in (data.float_score, data.least_score) if value is not None]
    return score_range(data.panels, lines=lines, noise=data.noise or 0.0)


def _panel(axes: Axes, panel: Panel, data: TradeoffData, *, low: float, high: float) -> None:
    unit = unit_of(panel.metric, max((point.cost for point in panel.points), default=0.0))
    scaled = [replace(point, cost=point.cost / unit.factor) for point in panel.points]
    front = [(point.cost / unit.factor, point.score) for point in panel.front if point.score >= low]
    _lines(axes, panel, data, factor=unit.factor)
    if front and panel.metric != "sensitivity":
        axes.plot(*zip(*front, strict=True), drawstyle="steps-post", color=INK, linewidth=1.1, zorder=2)
    for kind, marker in _MARKERS.items():
        _points(axes, [point for point in scaled if point.kind == kind], marker, low=low)
    for point in scaled:
        if point.kind == "answer" and data.noise:
            axes.errorbar(
                point.cost,
                point.score,
                yerr=data.noise,
                color=_MARKERS["answer"].color,
                elinewidth=1.2,
                capsize=3,
                zorder=4,
            )
    if scaled:
        _names(axes, scaled, low=low, high=high)
    if panel.metric == "sensitivity" and scaled and all(point.cost > 0 for point in scaled):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    else:
        axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(label(unit.axis, longest=40))
    axes.grid(axis="x")
    axes.margins(x=0.08)


def _lines(axes: Axes, panel: Panel, data: TradeoffData, *, factor: float) -> None:
    if data.float_score is not None:
        axes.axhline(data.float_score, **_FLOAT_LINE, zorder=1)
    if data.least_score is not None:
        axes.axhline(data.least_score, **_BUDGET_LINE, zorder=1)
    if panel.budget is not None:
        axes.axvline(panel.budget / factor, **_BUDGET_LINE, zorder=1)


def _points(axes: Axes, points: list[Point], marker: _Marker, *, low: float) -> None:
    inside = [point for point in points if point.score >= low]
    below = [point for point in points if point.score < low]
    costs, scores = [point.cost for point in inside], [point.score for point in inside]
    axes.plot(costs, scores, **marker.drawn, zorder=5 if marker.size > 5 else 3, rasterized=len(inside) > 2000)
    size = max(4.0, 0.75 * marker.size)
    axes.plot(
        [p.cost for p in below], [low] * len(below), "v", markersize=size, color=marker.color, alpha=0.7, zorder=4
    )


def _names(axes: Axes, points: list[Point], *, low: float, high: float) -> None:
    """Name the uniform policies, the best first, as long as names do not cover each other."""
    costs = [point.cost for point in points]
    width = (max(costs) - min(costs)) or 1.0
    taken: list[Point] = []
    for point in sorted((p for p in points if p.kind == "reference" and p.score >= low), key=lambda p: -p.score):
        near = [
            p for p in taken if abs(p.cost - point.cost) < 0.15 * width and p.score - point.score < 0.06 * (high - low)
        ]
        if not near:
            taken.append(point)
            axes.annotate(
                point.text,
                (point.cost, point.score),
                xytext=(4, -9),
                textcoords="offset points",
                size=6.5,
                color=MUTED,
                zorder=6,
            )


def _legend(figure: Figure, data: TradeoffData) -> None:
    from matplotlib.lines import Line2D

    kinds = {point.kind for panel in data.panels for point in panel.points}
    handles = [
        Line2D([], [], **{**marker.drawn, "markersize": min(marker.size, 10)}, label=marker.text)
        for kind, marker in _MARKERS.items()
        if kind in kinds
    ]
    if any(panel.metric != "sensitivity" for panel in data.panels):
        handles.append(Line2D([], [], color=INK, linewidth=1.1, label="Pareto front"))
    if data.float_score is not None:
        handles.append(Line2D([], [], **_FLOAT_LINE, label="float model"))
    if data.least_score is not None or any(panel.budget is not None for panel in data.panels):
        handles.append(Line2D([], [], **_BUDGET_LINE, label="budget"))
    columns = len(handles) if len(data.panels) > 2 else 3
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, columnspacing=1.2, handletextpad=0.5)
