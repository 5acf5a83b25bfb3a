"""The sensitivity heat map: predicted loss increase of every layer in every format, and which one was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from haq.report.figures.style import INK, PAGE_WIDTH, label, new_figure, rows_of_layers, sorted_formats, styled
from haq.values.policy import Policy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

_KINDS = ("weight", "activation")


@dataclass(frozen=True)
class SensitivityData:
    """Sensitivities as matrices.

    Attributes:
        layers: names, one per row.
        formats: `weight` and `activation` -> format names, one per column, fewest bits first.
        values: kind -> `[layers, formats]`, NaN where the table has no entry.
        chosen: kind -> per layer the column that the answer uses, `None` where it is not in the table.
    """

    layers: tuple[str, ...]
    formats: Mapping[str, tuple[str, ...]]
    values: Mapping[str, npt.NDArray[np.float64]]
    chosen: Mapping[str, tuple[int | None, ...]]


def sensitivity_data(
    table: Mapping[tuple[str, str], Mapping[str, float]], policy: Policy | None = None
) -> SensitivityData:
    """What `plot_sensitivity` draws.

    Args:
        table: (layer, `weight` or `activation`) -> format name -> sensitivity, as `load_run` reads it.
        policy: the answer, whose cells are marked.
    """
    layers = tuple(policy) if policy is not None else tuple(dict.fromkeys(layer for layer, _ in table))
    formats, values, chosen = {}, {}, {}
    for kind in _KINDS:
        columns = sorted_formats({name for layer in layers for name in table.get((layer, kind), {})})
        rows = [[table.get((layer, kind), {}).get(name, math.nan) for name in columns] for layer in layers]
        picks = [getattr(policy[layer], kind).name if policy is not None else "" for layer in layers]
        formats[kind] = tuple(columns)
        values[kind] = np.array(rows, dtype=float).reshape(len(layers), len(columns))
        chosen[kind] = tuple(columns.index(pick) if pick in columns else None for pick in picks)
    return SensitivityData(layers, formats, values, chosen)


@styled
def plot_sensitivity(data: SensitivityData) -> Figure:
    """Layers downwards, formats across, weights beside activations; long networks continue in further columns."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import FuncFormatter

    blocks = rows_of_layers(len(data.layers), longest=40, most=4)
    kinds = [kind for kind in _KINDS if data.formats[kind]]
    size = len(blocks[0])
    names = 0.07 * max(len(name) for kind in kinds for name in data.formats[kind]) if _is_crowded(data) else 0.0
    figure = new_figure(1.1 + names + max(1.3, 0.165 * min(size, 80)), width=min(PAGE_WIDTH, 3.2 + 3.4 * len(blocks)))
    ratios = [len(data.formats[kind]) for _ in blocks for kind in kinds]
    axes = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    norm = _norm(data)
    for column, cell in enumerate(axes):
        block, kind = blocks[column // len(kinds)], kinds[column % len(kinds)]
        _matrix(cell, data, kind, block, norm=norm)
        cell.set_ylim(size - 0.5, -0.5)
        stride = math.ceil(size / 80)
        shown = range(0, len(block) if column % len(kinds) == 0 else 0, stride)
        cell.set_yticks(list(shown), [label(data.layers[block[i]]) for i in shown])
    bar = figure.colorbar(ScalarMappable(norm, _MAP), ax=list(axes), shrink=0.9, aspect=30, pad=0.01)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label("predicted loss increase")
    return figure


_MAP = "Purples"
_LETTERS = 36
"""Of the names of formats, with a space for each, that fit side by side below one matrix."""


def _is_crowded(data: SensitivityData) -> bool:
    return any(sum(len(name) + 1 for name in names) > _LETTERS for names in data.formats.values())


def _norm(data: SensitivityData) -> Normalize:
    from matplotlib.colors import LogNorm

    positive = np.concatenate([matrix[np.isfinite(matrix) & (matrix > 0)] for matrix in data.values.values()])
    if not positive.size:
        return LogNorm(1e-6, 1.0, clip=True)
    # Six decades tell layers apart; what lies below them does not matter to any policy.
    high = float(positive.max())
    low = max(float(positive.min()), high * 1e-6)
    return LogNorm(low if low < high else high / 10, high, clip=True)


def _matrix(axes: Axes, data: SensitivityData, kind: str, block: range, *, norm: Normalize) -> None:
    values = data.values[kind][block.start : block.stop]
    shown = np.where(np.isnan(values), np.nan, np.maximum(values, norm.vmin or 0.0))
    edges = [np.arange(size + 1) - 0.5 for size in (values.shape[1], values.shape[0])]
    axes.pcolormesh(*edges, np.ma.masked_invalid(shown), cmap=_MAP, norm=norm, edgecolors="white", linewidth=0.6)
    for row, index in enumerate(block):
        column = data.chosen[kind][index]
        if column is not None:
            dark = norm(shown[row, column]) > 0.55
            axes.plot(column, row, "o", color="white" if dark else INK, markersize=4.2, markeredgewidth=0)
    axes.set_xlim(-0.5, len(data.formats[kind]) - 0.5)
    upright = _is_crowded(data) or len(data.layers) > 40
    axes.set_xticks(range(len(data.formats[kind])), list(data.formats[kind]), rotation=90 if upright else 0)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"{kind}s")
