"""What one more unit of each budget would buy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from haq.report.figures.style import ACCENT, INK, label, new_figure, styled
from haq.report.units import amount, in_order, metric_label, number, unit_of
from haq.results.schema import Marginal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class MarginalData:
    """The best objective against one budget, the other budgets held.

    Attributes:
        metric: the budget's.
        objective: name of the objective.
        budget: the current bound.
        points: (bound, best objective), by rising bound; bounds that cannot be met are left out.
    """

    metric: str
    objective: str
    budget: float
    points: tuple[tuple[float, float], ...]

    @property
    def current(self) -> float | None:
        """The best objective within the current budget, as far as the points tell."""
        within = [best for bound, best in self.points if bound <= self.budget * (1 + 1e-9)]
        return within[-1] if within else None

    @property
    def step(self) -> float:
        """A round amount of budget to speak about: a power of ten (of two for bytes), 2 % to 20 % of the budget."""
        if self.budget <= 0:
            return 1.0
        base = 2.0 if self.metric.endswith("_bytes") else 10.0
        return float(base ** math.floor(math.log(self.budget / 5, base) + 1e-9))

    @property
    def gain(self) -> float | None:
        """How far the objective falls with `step` more budget, interpolated; `None` where that was not computed."""
        bounds, values = [bound for bound, _ in self.points], [best for _, best in self.points]
        if self.current is None or bounds[-1] < self.budget + self.step:
            return None
        return max(0.0, self.current - float(np.interp(self.budget + self.step, bounds, values)))

    @property
    def words(self) -> str:
        """What more budget buys, as a sentence."""
        if self.gain is None or self.current is None:
            return "What more would buy was not computed."
        if self.points[-1][1] >= self.current * (1 - 1e-6):
            return "More would buy nothing."
        share = f"{number(100 * self.gain / self.current, digits=2)} %"
        target = amount(self.objective, self.current - self.gain, digits=2)
        return (
            f"{amount(self.metric, self.step)} more would buy about {share} less {_lower(self.objective)} ({target})."
        )


def _lower(metric: str) -> str:
    text = metric_label(metric)
    return text[0].lower() + text[1:]


def marginal_data(marginal: Mapping[str, Marginal], objective: str) -> list[MarginalData]:
    """What `plot_marginal` draws, one entry per budget."""
    found = []
    for metric in in_order(marginal):
        curve = marginal[metric]
        points = sorted((p.budget, p.objective) for p in curve.points if p.objective is not None)
        found.append(MarginalData(metric, objective, curve.budget, tuple(points)))
    return found


@styled
def plot_marginal(data: list[MarginalData]) -> Figure:
    """One panel per budget: the best objective within each bound, the current bound dashed."""
    columns = min(3, max(1, len(data)))
    rows = max(1, math.ceil(len(data) / columns))
    figure = new_figure(0.4 + 2.9 * rows, width=(6.5, 9.0, 11.0)[columns - 1])
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, one in zip(grid.flat, data, strict=False):
        _panel(axes, one)
    for axes in list(grid.flat)[len(data) :]:
        axes.set_axis_off()
    return figure


def _panel(axes: Axes, data: MarginalData) -> None:
    unit = unit_of(data.metric, max([data.budget, *(bound for bound, _ in data.points)]))
    best = unit_of(data.objective, max((value for _, value in data.points), default=0.0))
    bounds, values = [b / unit.factor for b, _ in data.points], [v / best.factor for _, v in data.points]
    axes.plot(bounds, values, "-o", color=INK, linewidth=1.1, markersize=3.5, drawstyle="steps-post")
    axes.axvline(data.budget / unit.factor, color=ACCENT, linewidth=1.1, linestyle=(0, (2, 2)))
    if data.current is not None:
        axes.plot(
            data.budget / unit.factor,
            data.current / best.factor,
            "*",
            color="#d55e00",
            markersize=13,
            markeredgecolor="white",
            markeredgewidth=0.5,
        )
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 30 * min(positive) and len(positive) == len(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_ylim(0, 1.08 * max(values, default=0.0) or 1.0)
    axes.set_xlabel(label(f"{unit.label} budget [{unit.name}]" if unit.name else f"{unit.label} budget", longest=48))
    axes.set_ylabel(label(f"least {best.axis[0].lower()}{best.axis[1:]}", longest=40))
    axes.grid(axis="x")
