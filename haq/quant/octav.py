"""OCTAV: the clip of least squared error by Newton's method (Sakr et al., "Optimal clipping and magnitude-aware
differentiation for improved quantization-aware training", ICML 2022, equation 10)."""

from __future__ import annotations

import torch
from torch import Tensor

_ITERATIONS = 20
_TINY = torch.finfo(torch.float32).tiny


def optimal_clip(sizes: Tensor, counts: Tensor, bits: int, *, signed: bool) -> Tensor:
    """The clip s of each row, `[rows, 1]`.

    It minimises counts * (4^-B / 3 * s^2 where size <= s, else (size - s)^2): a step of 2 s / 2^B is uniform noise
    inside, and what lies outside is moved to s. Iterations start at the mean size.

    Args:
        sizes: |x|, `[rows, n]`, without the zeros, which every quantizer holds.
        counts: how often each occurs, shaped likewise.
        bits: B; where nothing is negative, the positive levels are twice as many for the same s.
        signed: whether there are negative values.
    """
    noise = 4.0 ** -(bits if signed else bits + 1) / 3.0
    clip = (sizes * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=_TINY)
    for _ in range(_ITERATIONS):
        above = counts * (sizes > clip)
        beyond = above.sum(1, keepdim=True)
        inside = counts.sum(1, keepdim=True) - beyond
        clip = (sizes * above).sum(1, keepdim=True) / (noise * inside + beyond).clamp(min=_TINY)
    # Where nothing is worth clipping, the mass above runs out, and with it the fixed point.
    largest = (sizes * (counts > 0)).amax(1, keepdim=True)
    return torch.where(clip > 0, torch.minimum(clip, largest), largest)


def clipped_ends(clip: Tensor, bits: int, scheme: str, *, signed: bool) -> tuple[Tensor, Tensor]:
    """The values of the outermost levels, so that what rounds to them reaches up to the clip.

    Args:
        clip: of `optimal_clip`.
        bits: of the integer format.
        scheme: `symmetric` or `affine`.
        signed: whether there are negative values.
    """
    if scheme == "symmetric":
        step = clip / (2 ** (bits - 1) - 0.5)
        return -step * 2 ** (bits - 1), step * (2 ** (bits - 1) - 1)
    if signed:
        end = clip * (1.0 - 2.0**-bits)
        return -end, end
    return torch.zeros_like(clip), clip * ((2**bits - 1) / (2**bits - 0.5))
