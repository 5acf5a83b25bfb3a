"""Whether what layers read has changed: population stability of each layer's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from haq.export.onnx.run import feeds_of, session
from haq.serve.reservoir import Sample, batches

Floats = NDArray[np.float64]
BINS = 10
WINDOW = 256
"""Samples that are compared at a time."""
_DRAWS = 400
_LEAST_SHARE = 1e-3


class Observer:
    """Mean, deviation and largest size of what each layer reads, sample by sample, of a family's last member."""

    def __init__(self, folder: Path, members: int) -> None:
        model = onnx.load(str(folder / f"member-{members - 1}.onnx"))
        read = dict.fromkeys(node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear")
        given = [value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT]
        self._names = [name for name in (*given, *read) if name not in {one.name for one in model.graph.output}]
        inputs = {value.name for value in model.graph.input}
        for name in self._names:
            if name not in inputs:
                model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        self._inside = [name for name in self._names if name not in inputs]
        self._session = session(model.SerializeToString())

    def __call__(self, samples: Sequence[Sample]) -> Floats:
        """`[samples, 3 * layers]`."""
        rows = []
        for batch in batches(samples):
            feeds = feeds_of(self._session, batch)
            found = dict(zip(self._inside, self._session.run(self._inside, feeds), strict=True)) if self._inside else {}
            values = [{**feeds, **found}[name].reshape(len(next(iter(feeds.values()))), -1) for name in self._names]
            columns = [(x.mean(1), x.std(1), np.abs(x).max(1)) for x in (v.astype(np.float64) for v in values)]
            rows.append(np.stack([one for three in columns for one in three], axis=1))
        return np.concatenate(rows)


class Drift:
    """Compares windows of statistics with a reference.

    The population stability index of a statistic is the sum over bins of (q - p) ln(q / p), p and q being the shares of
    reference and window in the deciles of the reference; the largest of all statistics counts. It is drift from the
    quantile on that bootstrap draws of reference and window, both from the reference, exceed with probability `alarms`.

    Attributes:
        threshold: from which it is drift.
    """

    def __init__(self, reference: Floats, *, window: int = WINDOW, alarms: float = 0.01, seed: int = 0) -> None:
        self._reference = reference
        self._edges, self._shares = _deciles(reference)
        rng, count = np.random.default_rng(seed), len(reference)
        drawn = []
        for _ in range(_DRAWS):
            edges, shares = _deciles(reference[rng.integers(count, size=count)])
            drawn.append(_largest(edges, shares, reference[rng.integers(count, size=window)]))
        self.threshold = float(np.quantile(drawn, 1 - alarms))

    def __call__(self, window: Floats) -> float:
        """The largest index of any statistic."""
        return _largest(self._edges, self._shares, window)


def _deciles(values: Floats) -> tuple[Floats, Floats]:
    """Inner edges `[BINS - 1, statistics]`, and the share of `values` in each bin `[BINS, statistics]`."""
    edges: Floats = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1], axis=0)
    return edges, _in_bins(edges, values)


def _in_bins(edges: Floats, values: Floats) -> Floats:
    places = (values[None] > edges[:, None]).sum(axis=0)
    shares: Floats = np.stack([(places == number).mean(axis=0) for number in range(BINS)])
    return shares


def _largest(edges: Floats, shares: Floats, window: Floats) -> float:
    p, q = np.maximum(shares, _LEAST_SHARE), np.maximum(_in_bins(edges, window), _LEAST_SHARE)
    return float(((q - p) * np.log(q / p)).sum(axis=0).max())
