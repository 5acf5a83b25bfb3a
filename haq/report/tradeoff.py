"""Accuracy against each metric: every measured policy, the Pareto front, and where the answer lies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from haq.report.run import Run
from haq.report.style import ACCENT, INK, MUTED, PAGE_WIDTH, label, new_figure, styled
from haq.report.units import in_order, unit_of
from haq.types import Policy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Measured:
    """A policy with a score; `kind` and `text` as in `Point`."""

    kind: str
    text: str
    costs: Mapping[str, float]
    score: float


@dataclass(frozen=True, slots=True)
class Point:
    """One measured policy.

    Attributes:
        kind: `trial`, `reference` (uniform, over the whole range), `uniform`, `greedy` (baselines) or `answer`.
        text: its precision where it is uniform, else its name.
        cost: in the panel's metric.
        score: larger is better.
    """

    kind: str
    text: str
    cost: float
    score: float


@dataclass(frozen=True, slots=True)
class Panel:
    """All measured policies against one metric.

    Attributes:
        metric: its name.
        points: in the order in which they are drawn, the answer last.
        front: the points that no other beats in both, by rising cost.
        budget: upper bound on the metric, if it has one.
    """

    metric: str
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    budget: float | None


@dataclass(frozen=True, slots=True)
class TradeoffData:
    """Accuracy against each metric.

    Attributes:
        score: name of the score.
        unit: its unit.
        panels: one per metric, budgeted metrics first.
        float_score: of the unquantized model.
        noise: standard error of a score.
        least_score: the budget on the accuracy drop as a score, if there is one.
    """

    score: str
    unit: str
    panels: tuple[Panel, ...]
    float_score: float | None
    noise: float | None
    least_score: float | None

    @property
    def axis(self) -> str:
        return f"{self.score} [{self.unit}]" if self.unit else self.score


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, score) points that no other point matches at less cost or beats at no more, by rising cost.

    Of equal points the first one counts.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def measured(run: Run) -> list[Measured]:
    """Every policy with a score: trials that are nothing else, references, baselines, and the answer last."""
    result = run.result
    entries = [("reference", main_precision(entry.policy), entry) for entry in result.references]
    entries += [(kind, kind, entry) for kind, entry in result.baselines.items() if entry is not None]
    entries.append(("answer", "answer", result.answer))
    named = {entry.policy.key for _, _, entry in entries}
    trials = [trial for trial in run.trials if trial.measurement.ok and trial.policy.key not in named]
    found = [Measured("trial", "", trial.costs, trial.measurement.score) for trial in trials]
    return found + [Measured(kind, text, e.costs, e.score) for kind, text, e in entries if e.score is not None]


def main_precision(policy: Policy) -> str:
    """The precision of most layers: what a uniform policy is called, whose first and last layer may be pinned."""
    return Counter(map(str, policy.values())).most_common(1)[0][0] if policy else ""


def tradeoff_data(run: Run) -> TradeoffData:
    """What `plot_tradeoff` draws: one panel per metric that the answer's cost is known in."""
    return _data(run, in_order(set(run.result.answer.costs) - {"sensitivity"}, first=run.result.budgets))


def prediction_data(run: Run) -> TradeoffData:
    """What `plot_tradeoff` draws to check the prediction: the score against the predicted loss increase."""
    return _data(run, ["sensitivity"])


def ranked_right(points: Sequence[tuple[float, float]]) -> float | None:
    """Of all pairs of (prediction, score) that differ in both, the share whose lower prediction scored higher."""
    table = np.array(points, dtype=float).reshape(-1, 2)
    agree = total = 0
    for i in range(len(table)):
        products = np.prod(table[i] - table[i + 1 :], axis=1)
        agree, total = agree + int((products < 0).sum()), total + int((products != 0).sum())
    return agree / total if total else None


def _data(run: Run, metrics: Sequence[str]) -> TradeoffData:
    result, policies = run.result, measured(run)
    panels = []
    for metric in metrics:
        points = tuple(
            Point(one.kind, one.text, one.costs[metric], one.score)
            for one in policies
            if one.costs.get(metric) is not None
        )
        front = tuple(points[i] for i in pareto_front([(p.cost, p.score) for p in points]))
        panels.append(Panel(metric, points, front, result.budgets.get(metric)))
    reference, drop = result.unquantized.search_score, result.budgets.get("accuracy_drop")
    least = None if reference is None or drop is None else reference - drop
    return TradeoffData(result.metric, result.score_unit, tuple(panels), reference, result.score_noise, least)


@dataclass(frozen=True, slots=True)
class _Marker:
    text: str
    shape: str
    color: str
    size: float
    hollow: bool = False


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
        _panel(axes, panel, data, low=low)
        axes.set_ylim(low - 0.04 * (high - low), high + 0.06 * (high - low))
    for axes in list(grid.flat)[len(data.panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(label(data.axis))
    _legend(figure, data)
    return figure


def _score_range(data: TradeoffData) -> tuple[float, float]:
    points = [point for panel in data.panels[:1] for point in panel.points]
    scores = sorted(point.score for point in points)
    lines = [value for value in (data.float_score, data.least_score) if value is not None]
    if not scores:
        return (min(lines) - 1, max(lines) + 1) if lines else (0.0, 1.0)
    noise = data.noise or 0.0
    lines += [point.score + side * noise for point in points if point.kind == "answer" for side in (-1, 1)]
    high = max([*scores, *lines])
    # What matters lies between the worst of the named policies and the best; a 2-bit network at chance level does not.
    key = [point.score for point in points if point.kind in ("answer", "uniform", "greedy")] + lines
    low = min(key or scores) - 0.6 * (high - min(key or scores))
    if scores[0] > low - (high - low):
        low = scores[0]
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _panel(axes: Axes, panel: Panel, data: TradeoffData, *, low: float) -> None:
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
    if panel.metric == "sensitivity" and scaled and all(point.cost > 0 for point in scaled):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel(label(unit.axis, longest=40))
    axes.grid(axis="x")
    axes.margins(x=0.08)


def _lines(axes: Axes, panel: Panel, data: TradeoffData, *, factor: float) -> None:
    if data.float_score is not None:
        axes.axhline(data.float_score, color=MUTED, linewidth=1.0, linestyle=(0, (5, 3)), zorder=1)
    if data.least_score is not None:
        axes.axhline(data.least_score, color=ACCENT, linewidth=1.1, linestyle=(0, (2, 2)), zorder=1)
    if panel.budget is not None:
        axes.axvline(panel.budget / factor, color=ACCENT, linewidth=1.1, linestyle=(0, (2, 2)), zorder=1)


def _points(axes: Axes, points: list[Point], marker: _Marker, *, low: float) -> None:
    inside = [point for point in points if point.score >= low]
    below = [point for point in points if point.score < low]
    face = "white" if marker.hollow else marker.color
    axes.plot(
        [p.cost for p in inside],
        [p.score for p in inside],
        marker.shape,
        markersize=marker.size,
        color=face,
        markeredgecolor=marker.color if marker.hollow else "white",
        markeredgewidth=1.0 if marker.hollow else 0.5,
        zorder=5 if marker.size > 5 else 3,
        rasterized=len(inside) > 2000,
    )
    axes.plot([p.cost for p in below], [low] * len(below), "v", markersize=4, color=marker.color, alpha=0.7, zorder=3)
    for point in inside if marker.hollow else []:
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
        Line2D(
            [],
            [],
            linestyle="",
            marker=m.shape,
            markersize=min(m.size, 10),
            color="white" if m.hollow else m.color,
            markeredgecolor=m.color if m.hollow else "white",
            markeredgewidth=1.0 if m.hollow else 0.5,
            label=m.text,
        )
        for kind, m in _MARKERS.items()
        if kind in kinds
    ]
    if any(panel.metric != "sensitivity" for panel in data.panels):
        handles.append(Line2D([], [], color=INK, linewidth=1.1, label="Pareto front"))
    if data.float_score is not None:
        handles.append(Line2D([], [], color=MUTED, linestyle=(0, (5, 3)), linewidth=1.0, label="float model"))
    if data.least_score is not None or any(panel.budget is not None for panel in data.panels):
        handles.append(Line2D([], [], color=ACCENT, linestyle=(0, (2, 2)), linewidth=1.1, label="budget"))
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=len(handles) if len(data.panels) > 2 else 3,
        columnspacing=1.2,
        handletextpad=0.5,
    )
