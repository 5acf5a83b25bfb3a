"""Ternary weights: -scale, 0 or +scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Ternary:
    """-scale, 0 or +scale, by comparison with a threshold; both `[rows, 1]`, or 0-d for a whole tensor."""

    threshold: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(x.abs() > self.threshold, x.sign() * self.scale, torch.zeros_like(x))


def ternary_quantizer(rows: Tensor) -> Ternary:
    """Ternary Weight Networks (Li et al. 2016, eq. 5, 6): threshold 0.7 E|w|, scale E[|w|] over |w| > threshold."""
    size = rows.abs()
    threshold = 0.7 * size.mean(1, keepdim=True)
    above = size > threshold
    scale = (size * above).sum(1, keepdim=True) / above.sum(1, keepdim=True).clamp_(min=1)
    return Ternary(threshold, scale)
