"""Predicted against measured latency of held-out policies, as a scatter plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq.edges.documents import write_bytes
from haq.report.figures.style import INK, MUTED, RUN_COLORS, label, new_figure, png, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = dict[str, tuple[list[float], list[float]]]


def validation_data(document: Mapping[str, Any]) -> Points:
    """What `plot_validation` draws: cost model -> measured and predicted milliseconds, of a `validation.json`."""
    rows = document["rows"]
    measured = [row["measured_ms"] for row in rows]
    return {name: (measured, [row["predicted_ms"][name] for row in rows]) for name in document["models"]}


@styled
def plot_validation(points: Points, *, title: str) -> Figure:
    """A panel per cost model, one point per policy, and the line where both agree."""
    figure = new_figure(3.9, width=3.6 * len(points))
    panels = figure.subplots(1, len(points), squeeze=False, sharex=True, sharey=True)[0]
    values = [value for pair in points.values() for side in pair for value in side]
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 1.0
    ends = (low - margin, high + margin)
    for axes, color, (name, (measured, predicted)) in zip(panels, RUN_COLORS, points.items(), strict=False):
        axes.plot(ends, ends, color=MUTED, linewidth=0.9)
        axes.scatter(measured, predicted, s=16, color=color, edgecolor=INK, linewidth=0.3, zorder=3)
        axes.set_title(label(name, longest=40))
        axes.set_xlabel("measured ms, at the profile's pace")
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_aspect("equal")
    panels[0].set_ylabel("predicted ms")
    figure.suptitle(label(title, longest=100), fontsize=9)
    return figure


def write_validation(document: Mapping[str, Any], path: Path) -> None:
    """Draw a `validation.json` into a PNG file."""
    title = f"{document['experiment']} on {document['device']}"
    write_bytes(path, png(plot_validation(validation_data(document), title=title)))
