"""Regret against the number of evaluations, one panel per budget and split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from haq.report.figures.style import PAGE_WIDTH, RUN_COLORS, label, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))


@dataclass(frozen=True)
class RegretPanel:
    """One budget on one split.

    Attributes:
        title: the budget.
        row: the split; panels of one row share the axis of regret.
        curves: strategy -> regret `[seeds, evaluations]`.
    """

    title: str
    row: str
    curves: Mapping[str, NDArray[np.float64]]


@styled
def plot_regret(panels: Sequence[RegretPanel], *, unit: str, title: str) -> Figure:
    """Median (line) and quartiles (band) over seeds of every strategy.

    Args:
        panels: ordered by row, then budget; all rows have the same budgets.
        unit: of the regret.
        title: of the whole figure.
    """
    from matplotlib.lines import Line2D

    rows = list(dict.fromkeys(panel.row for panel in panels))
    columns = len(panels) // len(rows)
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    figure = new_figure(0.9 + 2.5 * len(rows), width=max(PAGE_WIDTH / 2, min(PAGE_WIDTH, 1.0 + 2.4 * columns)))
    grid = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey="row")
    for axes, panel in zip(grid.flat, panels, strict=True):
        _panel(axes, panel, names)
    for axes, row in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(label(f"regret, {row} ({unit})", longest=60))
        axes.set_ylim(bottom=0)
    for axes in grid[-1]:
        axes.set_xlabel("evaluations")
    handles = [Line2D([], [], **_look(i), label=label(name)) for i, name in enumerate(names)]
    figure.suptitle(label(title, longest=120), x=0.01, ha="left", weight="bold", size=10)
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _look(index: int) -> dict[str, Any]:
    dashes = _DASHES[index // len(RUN_COLORS) % len(_DASHES)]
    return {"color": RUN_COLORS[index % len(RUN_COLORS)], "linestyle": dashes, "linewidth": 1.4}


def _panel(axes: Axes, panel: RegretPanel, names: Sequence[str]) -> None:
    for name, values in panel.curves.items():
        look = _look(names.index(name))
        steps = np.arange(1, values.shape[1] + 1)
        low, median, high = np.percentile(values, (25, 50, 75), axis=0)
        axes.plot(steps, median, **look)
        axes.fill_between(steps, low, high, color=look["color"], alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_title(label(panel.title, longest=40))
