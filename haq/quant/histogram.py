"""What calibration remembers of an activation: a histogram that grows with the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HALF_BINS = 4096
_SAMPLE = 2**17
"""Elements per update that go into the bins; minimum and maximum are always taken over all."""


class Histogram:
    """Counts of values in 2 x 4096 bins over [-reach, reach], about 64 KB whatever is counted.

    `reach` is a power of two and doubles when a larger value comes; bins then merge in pairs, so earlier counts stay
    exact. Exact zeros (what a ReLU writes) are counted apart: every quantizer holds zero without error. Of an update
    with more than 131,072 elements an evenly strided subset is binned.

    Attributes:
        low: least value seen, or 0 if that is larger.
        high: largest value seen, or 0 if that is smaller.
        negative: whether a value below zero was seen.
    """

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.zeros = 0
        self.reach = 0.0
        self._counts = torch.zeros(2 * _HALF_BINS, dtype=torch.float64)
        self.updates = 0
        self._ends: list[tuple[float, float]] = []

    def update(self, values: Tensor) -> None:
        """Count `values`, of any shape.

        Raises:
            ValueError: some are NaN or infinite.
        """
        if values.numel() == 0:
            return
        values = _flat(values.detach())
        low, high = (float(end) for end in values.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("not all values are finite")
        self.updates += 1
        self._ends.append((min(low, 0.0), max(high, 0.0)))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(-low, high))
        sample = _strided(values).to(torch.float32)
        zeros = int((sample == 0).sum())
        self.zeros += zeros
        if self.reach:
            # Scaling by a power of two is exact, so a value falls into the same bin before and after a merge.
            bins = (sample * (_HALF_BINS / self.reach)).floor_().to(torch.int64).add_(_HALF_BINS)
            bins.clamp_(max=2 * _HALF_BINS - 1)
            self._counts += torch.bincount(bins, minlength=2 * _HALF_BINS).cpu()
            self._counts[_HALF_BINS] -= zeros

    def _grow(self, largest: float) -> None:
        if largest == 0.0 or largest <= self.reach:
            return
        reach = 2.0 ** math.ceil(math.log2(largest))
        for _ in range(round(math.log2(reach / self.reach)) if self.reach else 0):
            merged = torch.zeros_like(self._counts)
            merged[_HALF_BINS // 2 : -_HALF_BINS // 2] = self._counts.view(-1, 2).sum(1)
            self._counts = merged
        self.reach = reach

    @property
    def negative(self) -> bool:
        return self.low < 0.0

    @property
    def width(self) -> float:
        """Of a bin."""
        return self.reach / _HALF_BINS

    def bins(self) -> tuple[Tensor, Tensor]:
        """Centres and counts of the bins between `low` and `high`, zeros apart; empty if there were only zeros."""
        if self.reach == 0.0:
            return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        first = max(0, math.floor(self.low / self.width) + _HALF_BINS)
        last = min(2 * _HALF_BINS, math.floor(self.high / self.width) + 1 + _HALF_BINS)
        centers = (torch.arange(first, last, dtype=torch.float64) - _HALF_BINS + 0.5) * self.width
        return centers, self._counts[first:last]

    def mean_size(self) -> float:
        """E|x| of what was seen."""
        centers, counts = self.bins()
        return float((centers.abs() * counts).sum() / (counts.sum() + self.zeros).clamp(min=1))

    def averaged_range(self, decay: float) -> tuple[float, float]:
        """Exponential moving averages of each update's ends, from the first (Jacob et al., CVPR 2018, section 3.1)."""
        low, high = self._ends[0] if self._ends else (0.0, 0.0)
        for least, largest in self._ends[1:]:
            low, high = decay * low + (1 - decay) * least, decay * high + (1 - decay) * largest
        return low, high

    def percentile_range(self, percentile: float) -> tuple[float, float]:
        """The range that leaves out (100 - percentile) % of the values at each end that has values, zero included."""
        centers, counts = self.bins()
        cumulative = torch.cumsum(counts, 0)
        # The zeros lie between the negative and the positive bins.
        cumulative += self.zeros * (centers > 0)
        total = float(counts.sum()) + self.zeros
        tail = (1.0 - percentile / 100.0) * total
        high = centers[cumulative >= total - tail]
        low = centers[cumulative > tail]
        half = self.width / 2
        upper = min(max(float(high[0]) + half, 0.0), self.high) if len(high) else self.high
        lower = max(min(float(low[0]) - half, 0.0), self.low) if len(low) else self.low
        return lower, upper


def _flat(values: Tensor) -> Tensor:
    """All elements in the order in which they lie in memory: no copy of a channels-last tensor."""
    order = sorted(range(values.dim()), key=values.stride, reverse=True)
    return values.permute(order).reshape(-1)


def _strided(flat: Tensor) -> Tensor:
    step = -(-flat.numel() // _SAMPLE)
    # A step that shares no factor with the size visits all rows, columns and channels alike.
    while step > 1 and math.gcd(step, flat.numel()) != 1:
        step += 1
    return flat[::step]
