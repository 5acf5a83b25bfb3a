"""`haq.engine.transformer_specification` over tensors of 64-bit integers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from haq.engine.transformer_specification import _MOST_HALVINGS, NORM_BITS


def exponential(q: Tensor, constants: Sequence[int]) -> Tensor:
    """i-exp of q <= 0."""
    ln2, b, c = constants
    halvings = (-q // ln2).clamp_(max=_MOST_HALVINGS)
    p = q.clamp(min=-_MOST_HALVINGS * ln2) + halvings * ln2
    return ((p + b) ** 2 + c) >> halvings


def gelu(q: Tensor, constants: Sequence[int]) -> Tensor:
    """i-GELU."""
    clip, one = constants
    distance = q.abs().clamp_(max=clip) - clip
    erf = one - distance**2
    return q * (one + torch.where(q >= 0, erf, -erf))


def square_root(n: Tensor) -> Tensor:
    """floor(sqrt(n)): a float's, put right by a step where it was rounded."""
    y = n.double().sqrt().long()
    y -= (y * y > n).long()
    return y + ((y + 1) ** 2 <= n).long()


def normalized(q: Tensor, epsilon: int) -> Tensor:
    """(q - mean) / standard deviation over the last dimension."""
    n = q.shape[-1]
    deviations = n * q - q.sum(-1, keepdim=True)
    variance = (deviations**2).sum(-1, keepdim=True) // n
    root = square_root(variance + epsilon).clamp_(min=1)
    return torch.div(deviations << NORM_BITS, root, rounding_mode="floor")
