"""From measured policies to costs: layers from the runtime's own profile, switches by non-negative least squares.

The time of a policy is the sum of its layers' costs and of a cost for each tensor that changes its format, and for each
operand of a sum that differs from the others: a constant and a part per element, each direction for itself. Layers'
costs are their shares of the two anchors (all float, all low), whose end-to-end times they add up to; so the profiler's
own time per node cancels. What is left of the measured mixed policies is the switches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from haq.hardware.costs import CostReport
from haq.profiling.runtimes.base import FLOAT
from haq.values.network import Network

KINDS = ("switch_down", "switch_up", "join_down", "join_up")
"""Conversions from float, and to float, of a tensor for its readers and of an operand of a join."""
_RIDGE = 1e-3
"""Of columns scaled to 1: splits what cannot be told apart, such as both directions of a round trip, evenly."""

_PRIOR = 1e-5
"""How strongly a layer's cost is drawn to the first guess, beside one measured policy."""
_LEAST_SHARE = 0.1
"""Of a layer's profiled time that is taken to be its own."""

Times = Mapping[str, float]


@dataclass(frozen=True)
class Sample:
    """One measured policy.

    Attributes:
        low: the layers in low precision.
        counts: for each of `KINDS`, how many conversions, and of how many elements.
        ms: measured end to end.
    """

    low: frozenset[str]
    counts: Mapping[str, tuple[int, int]]
    ms: float


def sample(report: CostReport, ms: float) -> Sample:
    """The features of a policy, from its cost report."""
    counts = {kind: [0, 0] for kind in KINDS}
    for what, rows in (("switch", report.switches), ("join", report.joins)):
        for row in rows:
            entry = counts[f"{what}_{'down' if row.written == FLOAT.activation else 'up'}"]
            entry[0] += 1
            entry[1] += row.elements
    low = frozenset(row.layer.name for row in report.layers if row.precision != FLOAT)
    return Sample(low, {kind: (count, elements) for kind, (count, elements) in counts.items()}, ms)


@dataclass(frozen=True)
class Fit:
    """Costs in milliseconds.

    Attributes:
        floating: layer -> in float.
        low: layer -> in low precision.
        fixed: kind -> per conversion.
        per_element: kind -> per element.
    """

    floating: Times
    low: Times
    fixed: Times
    per_element: Times

    def predict(self, sample: Sample) -> float:
        """Milliseconds of a policy."""
        layers = sum(self.low[name] if name in sample.low else ms for name, ms in self.floating.items())
        switches = sum(
            count * self.fixed[kind] + elements * self.per_element[kind]
            for kind, (count, elements) in sample.counts.items()
        )
        return layers + switches


def shares(times: Times, total: float) -> dict[str, float]:
    """Layer times inside the graph -> shares of the end-to-end time, which add up to 1.

    What their sum exceeds it by is the profiler's own, the same for each layer.

    Args:
        times: layer -> time that the profiler gives.
        total: end-to-end time without the profiler, in the same unit.
    """
    excess = max(0.0, sum(times.values()) - total) / len(times)
    net = {name: max(time - excess, _LEAST_SHARE * time) for name, time in times.items()}
    return {name: time / sum(net.values()) for name, time in net.items()}


def fit(floating: Times, low: Times, anchors: tuple[Sample, Sample], mixed: Sequence[Sample]) -> Fit:
    """Costs of layers and switches.

    Args:
        floating: layer -> share of the all-float time.
        low: layer -> share of the all-low time.
        anchors: the two, all float first.
        mixed: measured policies between them.
    """
    top, bottom = anchors
    columns = [(kind, part) for kind in KINDS for part in (0, 1)]
    rows, targets = [], []
    for entry in mixed:
        share = sum(low[name] for name in entry.low)
        layers = top.ms * sum(value for name, value in floating.items() if name not in entry.low) + bottom.ms * share
        # The all-low network converts its input: that part of its time is no layer's.
        row = [entry.counts[kind][part] - share * bottom.counts[kind][part] for kind, part in columns]
        rows.append(np.array(row) / entry.ms)
        targets.append((entry.ms - layers) / entry.ms)
    found = _solve(np.array(rows).reshape(-1, len(columns)), np.array(targets))
    fixed = {kind: float(found[2 * index]) for index, kind in enumerate(KINDS)}
    per_element = {kind: float(found[2 * index + 1]) for index, kind in enumerate(KINDS)}
    converting = sum(
        bottom.counts[kind][0] * fixed[kind] + bottom.counts[kind][1] * per_element[kind] for kind in KINDS
    )
    rest = max(bottom.ms - converting, 0.0)
    return Fit(
        {name: top.ms * value for name, value in floating.items()},
        {name: rest * value for name, value in low.items()},
        fixed,
        per_element,
    )


def _solve(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    scale = np.abs(matrix).max(axis=0, initial=0.0)
    used = scale > 0
    found = np.zeros(matrix.shape[1])
    if not used.any():
        return found
    scaled = matrix[:, used] / scale[used]
    ridge = np.sqrt(_RIDGE) * np.eye(int(used.sum()))
    values, _ = nnls(np.vstack([scaled, ridge]), np.concatenate([target, np.zeros(len(ridge))]))
    found[used] = values / scale[used]
    return found


def prior(network: Network) -> dict[str, float]:
    """Layer -> its share of the multiply-accumulates and elements: the first guess where a runtime tells no times."""
    work = {layer.name: layer.macs + layer.input_elements + layer.output_elements for layer in network.layers}
    return {name: value / sum(work.values()) for name, value in work.items()}


def fit_layers(guess: Times, anchors: tuple[Sample, Sample], mixed: Sequence[Sample]) -> Fit:
    """Costs of layers and switches from end-to-end times alone, as near to a first guess as these allow.

    Non-negative least squares over all layers in both precisions and all switches; each layer's cost is drawn to its
    share of the two anchors, which count as often as the mixed policies together.

    Args:
        guess: layer -> share of the time.
        anchors: all float and all low.
        mixed: measured policies between them.
    """
    names, top, bottom = list(guess), *anchors
    columns = [(kind, part) for kind in KINDS for part in (0, 1)]
    scale = np.array(
        [top.ms * guess[name] for name in names]
        + [bottom.ms * guess[name] for name in names]
        + [max((s.counts[kind][part] for s in (bottom, *mixed)), default=0) or 1 for kind, part in columns]
    )
    scale[2 * len(names) :] = top.ms / scale[2 * len(names) :] / len(names)
    rows, weights = [], [max(1.0, len(mixed) / 2)] * 2 + [1.0] * len(mixed)
    for entry, weight in zip((top, bottom, *mixed), weights, strict=True):
        flags = [name in entry.low for name in names]
        row = [not flag for flag in flags] + flags + [entry.counts[kind][part] for kind, part in columns]
        rows.append(weight * np.array(row, float) * scale / entry.ms)
    ridge = np.sqrt(_PRIOR) * np.diag([1.0] * 2 * len(names) + [_RIDGE] * len(columns))
    wanted = np.sqrt(_PRIOR) * np.array([1.0] * 2 * len(names) + [0.0] * len(columns))
    values, _ = nnls(np.vstack([*rows, *ridge]), np.concatenate([weights, wanted]))
    found = values * scale
    layers, rest = found[: 2 * len(names)].reshape(2, -1), found[2 * len(names) :]
    return Fit(
        dict(zip(names, layers[0].tolist(), strict=True)),
        dict(zip(names, layers[1].tolist(), strict=True)),
        {kind: float(rest[2 * index]) for index, kind in enumerate(KINDS)},
        {kind: float(rest[2 * index + 1]) for index, kind in enumerate(KINDS)},
    )


Fitter = Callable[[Sequence[Sample]], Fit]
"""Mixed policies -> costs."""


def left_out_errors(fitter: Fitter, mixed: Sequence[Sample]) -> list[float]:
    """Error in per cent of each mixed policy, predicted from a fit to the others; positive: predicted too slow."""
    errors = []
    for index, entry in enumerate(mixed):
        others = [*mixed[:index], *mixed[index + 1 :]]
        errors.append(100.0 * (fitter(others).predict(entry) / entry.ms - 1.0))
    return errors
