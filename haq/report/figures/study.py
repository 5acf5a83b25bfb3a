"""Scores of uniform policies under each treatment, as groups of bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from haq.report.figures.style import INK, MUTED, RUN_COLORS, label, new_figure, png, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

study_png = png


@dataclass(frozen=True)
class StudyBars:
    """What `plot_study` draws.

    Attributes:
        precisions: the groups.
        treatments: the bars of each.
        cells: (precision, treatment) -> score and its standard error; `None` where there is none.
        floating: the float model's score.
        metric: what the score is.
        title: of the figure.
    """

    precisions: tuple[str, ...]
    treatments: tuple[str, ...]
    cells: Mapping[tuple[str, str], tuple[float | None, float | None]]
    floating: float
    metric: str
    title: str


@styled
def plot_study(data: StudyBars) -> Figure:
    """A group for each precision, a bar for each treatment with two standard errors, and a line for the float model."""
    figure = new_figure(3.6)
    axes = figure.subplots()
    width = 0.8 / len(data.treatments)
    lowest = data.floating
    for number, name in enumerate(data.treatments):
        color = RUN_COLORS[number % len(RUN_COLORS)]
        places, heights, errors = [], [], []
        for group, text in enumerate(data.precisions):
            score, noise = data.cells[text, name]
            if score is None:
                continue
            places.append(group + (number - (len(data.treatments) - 1) / 2) * width)
            heights.append(score)
            errors.append(2 * (noise or 0.0))
            lowest = min(lowest, score)
        hatch = "//" if number >= len(RUN_COLORS) else None
        axes.bar(places, heights, 0.92 * width, color=color, hatch=hatch, label=label(name, longest=32))
        axes.errorbar(places, heights, yerr=errors, fmt="none", ecolor=INK, elinewidth=0.7, capsize=1.5)
    axes.axhline(data.floating, color=MUTED, linewidth=0.9, linestyle="--", label="float")
    span = max(data.floating - lowest, 0.02 * abs(data.floating), 1e-9)
    axes.set_ylim(lowest - 0.15 * span, data.floating + 0.25 * span)
    axes.set_xticks(range(len(data.precisions)), data.precisions)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(f"{label(data.metric, longest=30)} on the search split")
    axes.set_title(label(data.title, longest=80))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderpad=0.2)
    return figure
