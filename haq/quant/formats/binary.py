"""Binary values: -scale or +scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Binary:
    """-scale or +scale, by the sign (zero counts as positive); scale is `[rows, 1]`, or 0-d for a whole tensor."""

    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, self.scale, -self.scale)


def binary_quantizer(rows: Tensor) -> Binary:
    """XNOR-Net (Rastegari et al. 2016, equation 6): scale E|w|."""
    return Binary(rows.abs().mean(1, keepdim=True))
