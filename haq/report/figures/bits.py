"""Bits per layer: weights upwards, activations downwards, coloured by format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from haq.report.figures.style import (
    format_color,
    format_legend,
    label_room,
    new_figure,
    rows_of_layers,
    show_layers,
    sorted_formats,
    styled,
    text_on,
    width_for,
)
from haq.values.formats import Format
from haq.values.policy import Policy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class BitsData:
    """Formats per layer, in network order.

    Attributes:
        layers: their names.
        weights: format name of each layer's weights.
        activations: format name of each layer's input.
    """

    layers: tuple[str, ...]
    weights: tuple[str, ...]
    activations: tuple[str, ...]


def bits_data(policy: Policy) -> BitsData:
    """What `plot_bits` draws."""
    precisions = list(policy.values())
    return BitsData(
        tuple(policy), tuple(p.weight.name for p in precisions), tuple(p.activation.name for p in precisions)
    )


@styled
def plot_bits(data: BitsData) -> Figure:
    """One pair of bars per layer, in rows of at most 48 layers; above 8 bits the scale is logarithmic."""
    rows = rows_of_layers(len(data.layers))
    figure = new_figure(0.3 + (1.6 + label_room(data.layers)) * len(rows), width=width_for(len(rows[0])))
    formats = sorted_formats([*data.weights, *data.activations])
    ticks = _ticks(formats)
    grid = figure.subplots(len(rows), squeeze=False)[:, 0]
    for axes, row in zip(grid, rows, strict=True):
        for sign, names in ((1, data.weights), (-1, data.activations)):
            _bars(axes, [names[i] for i in row], sign=sign, ticks=ticks, written=len(rows[0]) <= 32)
        _bit_axis(axes, ticks)
        show_layers(axes, [data.layers[i] for i in row], width=len(rows[0]))
    grid[0].set_title("Bits per layer")
    format_legend(grid[0], formats)
    return figure


def _ticks(formats: list[str]) -> list[int]:
    most = Format.parse(formats[-1]).bits
    return [2, 4, 6, 8] if most <= 8 else [bits for bits in (2, 4, 8, 16, 32) if bits < 2 * most]


def _height(bits: int, ticks: list[int]) -> float:
    return bits if ticks[-1] <= 8 else 1 + math.log2(bits)


def _bars(axes: Axes, names: list[str], *, sign: int, ticks: list[int], written: bool) -> None:
    bits = [Format.parse(name).bits for name in names]
    heights = [sign * _height(b, ticks) for b in bits]
    axes.bar(range(len(names)), heights, width=0.84, color=[format_color(name) for name in names])
    if written:
        for i, height in enumerate(heights):
            inside = height - sign * 0.03 * _height(ticks[-1], ticks)
            color, side = text_on(format_color(names[i])), "top" if sign > 0 else "bottom"
            axes.text(i, inside, str(bits[i]), color=color, size=7.5, ha="center", va=side)


def _bit_axis(axes: Axes, ticks: list[int]) -> None:
    top = _height(ticks[-1], ticks)
    places = [_height(bits, ticks) for bits in ticks]
    axes.set_ylim(-1.06 * top, 1.06 * top)
    axes.set_yticks([*(-p for p in reversed(places)), 0, *places], [*map(str, reversed(ticks)), "0", *map(str, ticks)])
    axes.axhline(0, color=axes.spines["left"].get_edgecolor(), linewidth=0.8)
    axes.spines["bottom"].set_visible(False)
    axes.set_ylabel("activations     weights")
