"""Figures that overlay several runs, one colour per run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from haq.report.figures.style import (
    PAGE_WIDTH,
    RUN_COLORS,
    format_color,
    format_legend,
    label,
    label_room,
    new_figure,
    rows_of_layers,
    show_layers,
    sorted_formats,
    styled,
    text_on,
    width_for,
)
from haq.report.figures.tradeoff import Panel, score_range
from haq.report.units import unit_of
from haq.values.formats import Format
from haq.values.policy import Policy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ((0, (2, 2)), (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))


@styled
def plot_fronts(names: Sequence[str], panels: Sequence[Sequence[Panel]], *, axis: str) -> Figure:
    """One panel per metric with the measured policies and the Pareto front of every run.

    Args:
        names: of the runs.
        panels: per metric, one panel per run.
        axis: what the scores are, with their unit.
    """
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(0.5 + 3.1 * rows + 0.18 * len(names), width=(6.5, 9.0, PAGE_WIDTH)[columns - 1])
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    low, high = score_range([panel for metric in panels for panel in metric])
    for axes, runs in zip(grid.flat, panels, strict=False):
        _fronts(axes, runs, low=low)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.06 * (high - low))
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(label(axis))
    _legend(figure, names)
    return figure


def _fronts(axes: Axes, runs: Sequence[Panel], *, low: float) -> None:
    unit = unit_of(runs[0].metric, max((point.cost for run in runs for point in run.points), default=0.0))
    for number, run in enumerate(runs):
        color = RUN_COLORS[number % len(RUN_COLORS)]
        shown = [point for point in run.points if point.score >= low]
        front = [point for point in run.front if point.score >= low]
        axes.plot(
            [p.cost / unit.factor for p in shown],
            [p.score for p in shown],
            "o",
            color=color,
            markersize=2.8,
            alpha=0.45,
            markeredgewidth=0,
            rasterized=len(shown) > 2000,
        )
        axes.plot(
            [p.cost / unit.factor for p in front],
            [p.score for p in front],
            drawstyle="steps-post",
            color=color,
            linewidth=1.3,
        )
        answers = [point for point in run.points if point.kind == "answer"]
        axes.plot(
            [p.cost / unit.factor for p in answers],
            [p.score for p in answers],
            "*",
            color=color,
            markersize=13,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=5,
        )
        if run.budget is not None:
            dashes = _DASHES[number % len(_DASHES)]  # equal budgets of several runs stay visible beneath each other
            axes.axvline(run.budget / unit.factor, color=color, linewidth=1.0, linestyle=dashes, zorder=1)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(label(unit.axis, longest=40))
    axes.grid(axis="x")
    axes.margins(x=0.06)


@styled
def plot_progress(names: Sequence[str], progress: Sequence[Sequence[tuple[int, float]]], *, axis: str) -> Figure:
    """Best score so far against the number of policies evaluated."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(3.4 + 0.18 * len(names), width=8.0)
    axes = figure.subplots()
    for number, curve in enumerate(progress):
        color = RUN_COLORS[number % len(RUN_COLORS)]
        steps, best = [step for step, _ in curve], [score for _, score in curve]
        axes.plot(steps, best, color=color, linewidth=1.6, drawstyle="steps-post")
        axes.plot(steps[-1:], best[-1:], "o", color=color, markersize=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _show_the_end(axes, progress)
    axes.set_xlabel("policies evaluated")
    axes.set_ylabel(label(f"best {axis}", longest=40))
    _legend(figure, names)
    return figure


def _show_the_end(axes: Axes, progress: Sequence[Sequence[tuple[int, float]]]) -> None:
    """Leave out scores far below: how the searches end matters, not how badly one began."""
    scores = [best for curve in progress for _, best in curve]
    high, last = max(scores), min(curve[-1][1] for curve in progress if curve)
    floor = high - 4 * (high - last)
    if high > last and floor > min(scores):
        axes.set_ylim(floor, high + 0.3 * (high - last))


def _legend(figure: Figure, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=RUN_COLORS[i % len(RUN_COLORS)],
            linewidth=1.6,
            marker="*",
            markersize=9,
            markeredgewidth=0,
            label=label(name, longest=60),
        )
        for i, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2 if len(names) > 3 else 1)


@styled
def plot_strips(names: Sequence[str], policies: Sequence[Policy]) -> Figure:
    """One strip per run, a column per layer: weight format above, activation format below. All name the same layers."""
    layers = list(policies[0])
    rows = rows_of_layers(len(layers))
    figure = new_figure(
        0.4 + (0.1 + 0.42 * len(names) + label_room(layers)) * len(rows), width=max(7.0, width_for(len(rows[0])))
    )
    grid = figure.subplots(len(rows), squeeze=False)[:, 0]
    for axes, row in zip(grid, rows, strict=True):
        for number, policy in enumerate(policies):
            _strip(axes, [policy[layers[i]].weight.name for i in row], y=number, written=len(rows[0]) <= 32)
            _strip(axes, [policy[layers[i]].activation.name for i in row], y=number + 0.4, written=len(rows[0]) <= 32)
        axes.set_ylim(len(policies) - 0.1, -0.12)
        axes.set_yticks([number + 0.4 for number in range(len(policies))], [label(name, longest=28) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        show_layers(axes, [layers[i] for i in row], width=len(rows[0]))
    grid[0].set_title("Bits per layer")
    format_legend(
        grid[0], sorted_formats(form.name for p in policies for q in p.values() for form in (q.weight, q.activation))
    )
    return figure


def _strip(axes: Axes, formats: Sequence[str], *, y: float, written: bool) -> None:

    axes.bar(range(len(formats)), 0.38, bottom=y, width=0.94, color=[format_color(name) for name in formats])
    for i, name in enumerate(formats if written else ()):
        axes.text(
            i,
            y + 0.2,
            str(Format.parse(name).bits),
            size=7,
            ha="center",
            va="center",
            color=text_on(format_color(name)),
        )
