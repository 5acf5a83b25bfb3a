"""`haq.engine.dyadic` over tensors of 64-bit integers."""

from __future__ import annotations

import torch
from torch import Tensor


def divide(numerator: Tensor, denominator: Tensor, rounding: str) -> Tensor:
    """numerator / denominator (above 0), rounded; `gemmlowp` is half away from zero here."""
    if rounding == "half_up":
        # floor(n / d) and its rest: 2 n + d could overflow.
        quotient = torch.div(numerator, denominator, rounding_mode="floor")
        return quotient + (2 * (numerator - quotient * denominator) >= denominator)
    size = numerator.abs()
    quotient = size // denominator
    rest = 2 * (size - quotient * denominator)
    tie = (quotient & 1) == 1 if rounding == "half_even" else torch.ones_like(quotient, dtype=torch.bool)
    quotient = quotient + ((rest > denominator) | ((rest == denominator) & tie))
    return torch.where(numerator < 0, -quotient, quotient)


def rescale(values: Tensor, multiplier: Tensor, exponent: Tensor, rounding: str) -> Tensor:
    """32-bit `values` (in int64) times multiplier * 2^(exponent - 31), rounded."""
    if rounding == "gemmlowp":
        return _gemmlowp(values, multiplier, exponent)
    right = 31 - exponent
    half = torch.ones_like(right) << (right - 1)
    product = values * multiplier
    if rounding == "half_up":
        return (product + half) >> right
    size = product.abs()
    if rounding == "half_away":
        quotient = (size + half) >> right
    else:
        quotient = size >> right
        rest = size - (quotient << right)
        quotient += (rest > half) | ((rest == half) & ((quotient & 1) == 1))
    return torch.where(product < 0, -quotient, quotient)


def _gemmlowp(values: Tensor, multiplier: Tensor, exponent: Tensor) -> Tensor:
    left, right = exponent.clamp(min=0), (-exponent).clamp(min=0)
    product = (values << left) * multiplier
    size = product.abs()
    # (product + 2^30) / 2^31 and (product + 1 - 2^30) / 2^31, both towards zero.
    high = torch.where(product >= 0, (size + (1 << 30)) >> 31, -((size - 1 + (1 << 30)) >> 31))
    mask = (torch.ones_like(right) << right) - 1
    threshold = (mask >> 1) + (high < 0)
    return (high >> right) + ((high & mask) > threshold)
