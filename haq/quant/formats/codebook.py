"""Codebooks: each weight is the nearest of 2^b centroids (Han et al., "Deep compression", ICLR 2016, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from haq.quant.formats.base import Arrays, Calibration, Coder, NumberFormat, Quantizer
from haq.quant.formats.blocks import along
from haq.values.formats import Format

_MOST_ITERATIONS = 1000
_BINS = 512


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """The nearest centroid; half-way values go to the lower one.

    Attributes:
        bits: of a code.
        centroids: `[2^bits]` float32, sorted.
    """

    bits: int
    centroids: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return along(x, -1, lambda rows: self.centroids[self.assign(rows)])

    def assign(self, rows: Tensor) -> Tensor:
        """The number of the centroid of each weight, int64."""
        return torch.bucketize(rows.contiguous(), (self.centroids[1:] + self.centroids[:-1]) / 2)

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        return {"codes": self.assign(rows).to(torch.uint8), "centroids": self.centroids.clone()}

    def decode(self, arrays: Arrays, columns: int) -> Tensor:
        return arrays["centroids"][arrays["codes"].long()]

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"codes": (rows, columns), "centroids": (2**self.bits,)}

    @property
    def widths(self) -> Mapping[str, int]:
        return {} if self.bits == 8 else {"codes": self.bits}


def k_means(values: Tensor, count: int) -> Tensor:
    """Centroids `[count]`, sorted, of Lloyd's algorithm; the better of two starts, by squared error.

    One start is even steps over [min, max] (section 3.2, "linear"), which keeps the large weights; with many centroids
    it takes forever to thin them out, so that the other has the density of an optimal quantizer of many levels, the
    cube root of the weights' own (Panter and Dite 1951).
    """
    ordered = values.flatten().to(torch.float64).sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    low, high = ordered[0], ordered[-1]
    even = low + torch.linspace(0, 1, count, dtype=torch.float64, device=values.device) * (high - low)
    found = [_lloyd(ordered, sums, start) for start in (even, _by_density(ordered, count))]
    return min(found, key=lambda pair: pair[1])[0].to(torch.float32)


def _lloyd(ordered: Tensor, sums: Tensor, centroids: Tensor) -> tuple[Tensor, float]:
    """Centroids and squared error but for a constant; a cluster is a range of the sorted values, its mean a difference.

    A centroid without weights stays where it is.
    """
    before = None
    for _ in range(_MOST_ITERATIONS):
        # A weight half-way belongs to the lower centroid, as in `assign`.
        inner = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, right=True)
        ends = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ordered))])
        if before is not None and torch.equal(ends, before):
            break
        before, sizes = ends, ends.diff()
        means = (sums[ends[1:]] - sums[ends[:-1]]) / sizes.clamp(min=1)
        centroids = torch.where(sizes > 0, means, centroids).sort().values
    assert before is not None
    explained = (sums[before[1:]] - sums[before[:-1]]).square() / before.diff().clamp(min=1)
    return centroids, -float(explained.sum())


def _by_density(ordered: Tensor, count: int) -> Tensor:
    low, width = ordered[0], (ordered[-1] - ordered[0]).clamp(min=torch.finfo(torch.float64).tiny)
    bins = ((ordered - low) / width * _BINS).long().clamp(max=_BINS - 1)
    share = torch.bincount(bins, minlength=_BINS).to(torch.float64).pow(1.0 / 3.0).cumsum(0)
    wanted = (torch.arange(count, dtype=torch.float64, device=ordered.device) + 0.5) / count * share[-1]
    return low + width * (torch.searchsorted(share, wanted).to(torch.float64) + 0.5) / _BINS


class KMeansFormat(NumberFormat):
    """Weights only; one codebook for the layer."""

    family = "k-means"

    def weight_quantizer(self, rows: Tensor, fmt: Format, how: Calibration) -> Quantizer:
        return Codebook(fmt.bits, k_means(rows, 2**fmt.bits))

    def coder(self, fmt: Format) -> Coder:
        return Codebook(fmt.bits, torch.zeros(2**fmt.bits))
