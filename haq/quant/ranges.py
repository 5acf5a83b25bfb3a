"""Range estimation of integers: from values seen to the scale and zero point of a quantizer.

Weights are calibrated row by row on a matrix `[rows, n]` (a row is an output channel, a group, or the whole tensor);
activations on the `Histogram` of what a layer read. Every range contains zero, which is therefore held exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from haq.quant.formats.base import Calibration
from haq.quant.formats.integer import PerRowInteger, PerTensorInteger, integer_limits
from haq.quant.histogram import Histogram
from haq.quant.octav import clipped_ends, optimal_clip

_COARSE = 10.0 ** torch.linspace(0.1, -1.5, 49, dtype=torch.float64)
"""Fractions of the full range that a search tries first: 1.26 down to 0.03, each 7 % below the one before."""
_COMMON_WEIGHT = 16.0
"""Of the two common parts of the error in `balanced`. 4 to 64 did about as well on two networks at 2 to 4 bits."""
_FINE = torch.linspace(1.08, 0.93, 12, dtype=torch.float64)
_HOPELESS = 4.0
"""Times the least error found: where a search for a smaller scale ends."""
_IN_CACHE = 2**16
"""Elements of weights times scales that are tried at once."""
_TINY = torch.finfo(torch.float32).tiny


def scale_and_zero_point(low: Tensor, high: Tensor, bits: int, scheme: str) -> tuple[Tensor, Tensor]:
    """The finest scale at which nothing in [low, high] is clipped, and the zero point, in the dtype of `low`.

    Args:
        low: 0 or less.
        high: 0 or more, same shape.
        bits: of the integer format.
        scheme: `symmetric` or `affine`.
    """
    quant_min, quant_max = integer_limits(bits, scheme)
    if scheme == "symmetric":
        scale = torch.maximum(low / quant_min, high / quant_max if quant_max else torch.zeros_like(high))
        zero_point = torch.zeros_like(scale)
    else:
        scale = (high - low) / (quant_max - quant_min)
        zero_point = (-low / scale.clamp(min=_TINY)).round_().clamp_(quant_min, quant_max)
    # All zeros: any scale holds them.
    return torch.where(scale < _TINY, torch.ones_like(scale), scale), zero_point


def integer_weight(rows: Tensor, bits: int, how: Calibration) -> PerRowInteger:
    """The integer quantizer of a weight matrix `[rows, n]`, one scale per row.

    `mse` minimises the squared error. At low bits its clipping shrinks all filters alike, which batch norm and the
    layers behind carry on; `balanced` weighs 16-fold the two parts of the error that do not average out: the part along
    the weights (a change of gain) and the part along their mean (a shift, as inputs behind a ReLU share a positive
    mean). Banner et al., "Post training 4-bit quantization of convolutional networks" (NeurIPS 2019), section 4.2,
    restore the same two moments after the fact. Scales are those of rounding to the nearest, however it rounds then.
    """
    low, high = _row_range(rows, how.method, how.percentile, bits, how.scheme)
    scale, zero_point = scale_and_zero_point(low, high, bits, how.scheme)
    quantizer = PerRowInteger(scale, zero_point, *integer_limits(bits, how.scheme))
    if how.method in ("mse", "balanced"):
        quantizer = _search_rows(rows, quantizer, _COMMON_WEIGHT if how.method == "balanced" else 0.0)
    return replace(quantizer, rounding=how.rounding, seed=how.seed)


def _row_range(rows: Tensor, method: str, percentile: float, bits: int, scheme: str) -> tuple[Tensor, Tensor]:
    low = rows.amin(1, keepdim=True).clamp_(max=0)
    high = rows.amax(1, keepdim=True).clamp_(min=0)
    if method == "percentile":
        # Nearest rank, computed here because torch.quantile refuses more than 16 million elements.
        rank = max(1, math.ceil(percentile / 100.0 * rows.shape[1]))
        high = rows.kthvalue(rank, 1, keepdim=True).values.clamp_(min=0)
        low = rows.kthvalue(rows.shape[1] - rank + 1, 1, keepdim=True).values.clamp_(max=0)
    elif method == "entropy":
        # A row has too few values for a distribution of its own: one fraction for all, from rows brought to one size.
        largest = torch.maximum(-low, high)
        pooled = Histogram()
        pooled.update(rows / largest.clamp(min=_TINY))
        clipped_low, clipped_high = _entropy_range(pooled, bits, scheme)
        low = torch.maximum(low, clipped_low * largest)
        high = torch.minimum(high, clipped_high * largest)
    elif method == "octav":
        sizes, signed = rows.abs(), scheme == "symmetric" or bool((rows < 0).any())
        clip = optimal_clip(sizes, (sizes > 0).to(rows), bits, signed=signed)
        ends = clipped_ends(clip, bits, scheme, signed=signed)
        return ends if scheme == "symmetric" else (torch.maximum(low, ends[0]), torch.minimum(high, ends[1]))
    return low, high


def _row_errors(rows: Tensor, quantizer: PerRowInteger, common_weight: float) -> Tensor:
    """|e|^2 + c ((e.w)^2 / |w|^2 + (e.1)^2 / n) along the last dimension; e = quantized - w, c = `common_weight`."""
    error = quantizer(rows).sub_(rows)
    if not common_weight:
        return error.square_().sum(-1)
    shift = error.sum(-1).square_() / rows.shape[-1]
    gain = (error * rows).sum(-1).square_() / rows.square().sum(-1).clamp(min=_TINY)
    return error.square_().sum(-1) + common_weight * (gain + shift)


def _search_rows(rows: Tensor, start: PerRowInteger, common_weight: float) -> PerRowInteger:
    """The scale of least error per row: a grid around and below min-max, a finer one, then Lloyd's iteration."""
    limits = (start.quant_min, start.quant_max)
    best_scale, best_zero = start.scale, start.zero_point
    best = _row_errors(rows, start, common_weight)[:, None]
    at_once = max(1, _IN_CACHE // max(1, rows.numel()))

    def offer(scales: Tensor, zero_point: Tensor) -> None:
        """Try `scales`, `[rows, candidates]`, the largest first."""
        nonlocal best, best_scale, best_zero
        for some in torch.split(scales, at_once, 1):
            quantizer = PerRowInteger(some[..., None], zero_point[..., None], *limits)
            errors = _row_errors(rows[:, None], quantizer, common_weight)
            error, which = errors.min(1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            best_scale = torch.where(better, some.gather(1, which), best_scale)
            best_zero = torch.where(better, zero_point, best_zero)
            # What is clipped grows as the scale shrinks; far beyond the best no smaller scale comes back.
            if (errors[:, -1:] > _HOPELESS * best).all():
                return

    affine = start.quant_min == 0
    for shift in (-1, 0, 1) if affine else (0,):
        zero_point = (start.zero_point + shift).clamp(*limits) if affine else start.zero_point
        offer(start.scale * _COARSE.to(rows), zero_point)
    offer(best_scale * _FINE.to(rows), best_zero)
    for _ in range(3):
        # With the codes fixed, the best scale is <w, q> / <q, q>; with the scale fixed, rounding is the best code.
        codes = PerRowInteger(best_scale, best_zero, *limits).quantize(rows).to(rows.dtype) - best_zero
        power = codes.square().sum(1, keepdim=True)
        refined = (rows * codes).sum(1, keepdim=True) / power.clamp(min=1)
        offer(torch.where(refined > 0, refined, best_scale), best_zero)
    return PerRowInteger(best_scale, best_zero, *limits)


def integer_activation(seen: Histogram, bits: int, how: Calibration) -> PerTensorInteger:
    """The integer quantizer of an activation of which `seen` was seen, one scale for the tensor."""
    low, high = _activation_range(seen, bits, how)
    ends = torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64)
    scale, zero_point = scale_and_zero_point(*ends, bits, how.scheme)
    return PerTensorInteger(float(scale.to(torch.float32)), int(zero_point), *integer_limits(bits, how.scheme))


def _activation_range(seen: Histogram, bits: int, how: Calibration) -> tuple[float, float]:
    method, scheme = how.method, how.scheme
    if method == "percentile":
        return seen.percentile_range(how.percentile)
    if method == "minmax" or seen.low == seen.high:
        return seen.low, seen.high
    if method == "ema":
        return seen.averaged_range(how.decay)
    if method == "octav":
        return _octav_range(seen, bits, scheme)
    return _mse_range(seen, bits, scheme) if method == "mse" else _entropy_range(seen, bits, scheme)


def _octav_range(seen: Histogram, bits: int, scheme: str) -> tuple[float, float]:
    centers, counts = seen.bins()
    signed = scheme == "symmetric" or seen.negative
    clip = optimal_clip(centers.abs()[None], counts[None], bits, signed=signed)
    low, high = (float(end) for end in clipped_ends(clip, bits, scheme, signed=signed))
    return (low, high) if scheme == "symmetric" else (max(low, seen.low), min(high, seen.high))


_Objective = Callable[[Tensor, Tensor], Tensor]
"""Ranges `low [k], high [k]` -> what is minimised `[k]`."""


def _mse_range(seen: Histogram, bits: int, scheme: str) -> tuple[float, float]:
    centers, counts = seen.bins()

    def error(low: Tensor, high: Tensor) -> Tensor:
        scale, zero_point = scale_and_zero_point(low, high, bits, scheme)
        return _histogram_errors(centers, counts, seen.width, scale, zero_point, integer_limits(bits, scheme))

    both = scheme == "affine" and seen.negative and seen.high > 0
    return _search_range(seen.low, seen.high, error, each_end=both)


def _histogram_errors(
    centers: Tensor, counts: Tensor, width: float, scale: Tensor, zero_point: Tensor, limits: tuple[int, int]
) -> Tensor:
    """Squared error of each of k quantizers, summed over the histogram."""
    scale, zero_point = scale[:, None], zero_point[:, None]
    codes = (centers / scale).round_().clamp_(limits[0] - zero_point, limits[1] - zero_point)
    distance = codes.mul_(scale).sub_(centers).abs_()
    # Steps finer than the bins: centres say nothing about rounding, which is then uniform.
    rounding = torch.where(scale < 2 * width, scale.square() / 12, torch.zeros_like(scale))
    inside = (distance <= scale / 2) & (scale < 2 * width)
    return torch.where(inside, rounding, distance.square()) @ counts


def _search_range(low: float, high: float, objective: _Objective, *, each_end: bool) -> tuple[float, float]:
    """Shrink [low, high] as a whole, then each end alone where they may differ."""
    ends = torch.tensor([low, high], dtype=torch.float64)
    no_change = torch.ones(1, dtype=torch.float64)

    def shrink(fractions: Tensor, which: tuple[bool, bool]) -> None:
        nonlocal ends
        candidates = torch.stack(
            [ends[i] * (fractions if which[i] else no_change.expand_as(fractions)) for i in (0, 1)]
        )
        candidates[0].clamp_(min=low)
        candidates[1].clamp_(max=high)
        ends = candidates[:, int(objective(candidates[0], candidates[1]).argmin())]

    shrink(_COARSE, (True, True))
    if each_end:
        wide = torch.linspace(0.4, 2.0, 33, dtype=torch.float64)
        for _ in range(2):
            shrink(wide, (True, False))
            shrink(wide, (False, True))
    shrink(torch.cat([_FINE, no_change]), (True, True))
    return float(ends[0]), float(ends[1])


def _entropy_range(seen: Histogram, bits: int, scheme: str) -> tuple[float, float]:
    """The range of least KL divergence between the values and what is left of them after quantization.

    TensorRT's calibration (Migacz, "8-bit inference with TensorRT", 2017), with the levels of this format's own
    quantizer in place of 128 equal ones: the reference P is the clipped histogram with what lies outside added to its
    end bins; the candidate Q spreads each level's in-range count evenly over the level's non-empty bins. 128 thresholds
    are tried, up to the full range; those with fewer bins than levels are skipped.
    """
    centers, counts = seen.bins()
    if not len(centers):
        return seen.low, seen.high
    best, best_range = math.inf, (seen.low, seen.high)
    for step in range(128, 0, -1):
        low, high = seen.low * step / 128, seen.high * step / 128
        inside = (centers >= low - seen.width / 2) & (centers <= high + seen.width / 2)
        if int(inside.sum()) < 2**bits and step < 128:
            break
        scale, zero_point = scale_and_zero_point(
            torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64), bits, scheme
        )
        limits = integer_limits(bits, scheme)
        levels = ((centers / scale).round_() + zero_point).clamp_(*limits).to(torch.int64) - limits[0]
        divergence = clipping_divergence(counts, inside, levels)
        if divergence < best:
            best, best_range = divergence, (low, high)
    return best_range


def clipping_divergence(counts: Tensor, inside: Tensor, levels: Tensor) -> float:
    """KL(P || Q) of a histogram clipped to the bins `inside` and quantized to `levels` (a number per bin)."""
    first, last = int(inside.nonzero()[0]), int(inside.nonzero()[-1])
    sliced, levels = counts[first : last + 1], levels[first : last + 1]
    reference = sliced.clone()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last + 1 :].sum()
    filled = (reference > 0).to(torch.float64)
    size = int(levels.max()) + 1
    mass = torch.zeros(size, dtype=torch.float64).index_add_(0, levels, sliced)
    bins = torch.zeros(size, dtype=torch.float64).index_add_(0, levels, filled)
    candidate = (mass / bins.clamp(min=1))[levels] * filled
    p = reference / reference.sum()
    q = candidate / candidate.sum().clamp(min=_TINY)
    held = p > 0
    return float((p[held] * (p[held] / q[held].clamp(min=1e-12)).log()).sum())
