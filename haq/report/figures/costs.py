"""Where the cost comes from: one bar per layer, with the conversions between formats on top."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from haq.report.figures.style import (
    INK,
    format_color,
    format_legend,
    label_room,
    new_figure,
    rows_of_layers,
    show_layers,
    sorted_formats,
    styled,
    width_for,
)
from haq.report.units import in_order, unit_of
from haq.results.schema import Breakdown, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTSIDE = "(network input)"


@dataclass(frozen=True, slots=True)
class CostsData:
    """One metric per layer.

    Attributes:
        metric: its name.
        layers: in network order, and `(network input)` last where a conversion belongs to no layer.
        formats: format name of each layer's weights; empty text for `(network input)`.
        own: what each layer costs itself.
        switches: conversions of tensors, at the first layer that reads the converted copy.
        joins: conversions of operands of an add or concat, at the layer into which it is fused.
    """

    metric: str
    layers: tuple[str, ...]
    formats: tuple[str, ...]
    own: tuple[float, ...]
    switches: tuple[float, ...]
    joins: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.own) + sum(self.switches) + sum(self.joins)


def metrics_shown(result: Result) -> list[str]:
    """The budgeted metrics that are sums over layers; where none is, latency, else the first that is known."""
    known = {metric for layer in result.breakdown.layers for metric in layer.costs} - {"sensitivity"}
    known.discard("peak_activation_bytes")
    budgeted = [metric for metric in in_order(known) if metric in result.budgets]
    if "average_weight_bits" in result.budgets and "size_bytes" in known:
        budgeted.append("size_bytes")
    return list(dict.fromkeys(budgeted)) or in_order(known)[:1]


def costs_data(breakdown: Breakdown, metric: str) -> CostsData:
    """What `plot_costs` draws: `metric` of each layer and conversion (0 where a layer has none)."""
    layers = [layer.name for layer in breakdown.layers]
    switches, joins = dict.fromkeys([*layers, OUTSIDE], 0.0), dict.fromkeys([*layers, OUTSIDE], 0.0)
    for switch in breakdown.switches:
        place = switch.to[0] if switch.to and switch.to[0] in switches else OUTSIDE
        switches[place] += switch.costs.get(metric, 0.0)
    for join in breakdown.joins:
        place = next((name for name in (join.owner, join.other) if name in joins), OUTSIDE)
        joins[place] += join.costs.get(metric, 0.0)
    if switches[OUTSIDE] or joins[OUTSIDE]:
        layers.append(OUTSIDE)
    own = {layer.name: layer.costs.get(metric, 0.0) for layer in breakdown.layers}
    formats = {layer.name: layer.precision.weight.name for layer in breakdown.layers}
    return CostsData(
        metric,
        tuple(layers),
        tuple(formats.get(name, "") for name in layers),
        tuple(own.get(name, 0.0) for name in layers),
        tuple(switches[name] for name in layers),
        tuple(joins[name] for name in layers),
    )


@styled
def plot_costs(data: CostsData) -> Figure:
    """Stacked bars per layer, coloured by weight format, conversions hatched, in rows of at most 48 layers."""
    from matplotlib.patches import Patch

    rows = rows_of_layers(len(data.layers))
    figure = new_figure(0.3 + (1.5 + label_room(data.layers)) * len(rows), width=width_for(len(rows[0])))
    top = max((sum(parts) for parts in zip(data.own, data.switches, data.joins, strict=True)), default=0.0)
    unit = unit_of(data.metric, top)
    grid = figure.subplots(len(rows), squeeze=False)[:, 0]
    for axes, row in zip(grid, rows, strict=True):
        _bars(axes, data, row, factor=unit.factor)
        show_layers(axes, [data.layers[i] for i in row], width=len(rows[0]))
        axes.set_ylim(0, 1.05 * (top or 1.0) / unit.factor)
        axes.set_ylabel(unit.axis)
    extra = [
        Patch(facecolor="none", edgecolor=INK, hatch=hatch, linewidth=0.6, label=text)
        for text, hatch, values in (("format switch", "////", data.switches), ("join", "....", data.joins))
        if any(values)
    ]
    grid[0].set_title(f"{unit.label} per layer")
    format_legend(grid[0], sorted_formats(filter(None, data.formats)), extra)
    return figure


def _bars(axes: Axes, data: CostsData, row: range, *, factor: float) -> None:
    places = range(len(row))
    own = [data.own[i] / factor for i in row]
    colors = [format_color(data.formats[i]) if data.formats[i] else INK for i in row]
    axes.bar(places, own, width=0.84, color=colors)
    base = own
    for values, hatch in ((data.switches, "////"), (data.joins, "....")):
        heights = [values[i] / factor for i in row]
        shown = [place for place in places if heights[place] > 0]
        axes.bar(
            shown,
            [heights[i] for i in shown],
            bottom=[base[i] for i in shown],
            width=0.84,
            facecolor="none",
            edgecolor=INK,
            hatch=hatch,
            linewidth=0.6,
        )
        base = [low + height for low, height in zip(base, heights, strict=True)]
