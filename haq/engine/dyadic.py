"""Rescaling by dyadic numbers: a real factor as a 32-bit multiplier and a power of two.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (CVPR
2018), section 2.2; Yao et al., "HAWQ-V3" (ICML 2021), section 3.1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from haq.values.errors import InputError

ROUNDINGS = ("half_away", "half_even", "half_up", "gemmlowp")
"""How a product is rounded: ties away from zero, to even or up, once, on the exact 64-bit product; `gemmlowp`: twice,
as gemmlowp and TFLite's default builds do (SaturatingRoundingDoublingHighMul, then RoundingDivideByPOT)."""
LEAST_EXPONENT = -31
"""Smaller factors round every 32-bit integer to 0."""
GREATEST_EXPONENT = 30
_INT32 = 2**31


class Dyadic(NamedTuple):
    """The factor multiplier * 2^(exponent - 31), with 2^30 <= |multiplier| < 2^31, or 0."""

    multiplier: int
    exponent: int

    @property
    def value(self) -> float:
        """The factor as a float; it is exact."""
        return math.ldexp(self.multiplier, self.exponent - 31)


def dyadic(factor: float) -> Dyadic:
    """The dyadic number nearest to `factor`: TFLite's `QuantizeMultiplier`, for negative factors too.

    Raises:
        InputError: not finite, or 2^30 and more.
    """
    if not math.isfinite(factor):
        raise InputError(f"a rescaling factor of {factor} cannot be said in integers; check scales and batch norms")
    fraction, exponent = math.frexp(factor)
    multiplier = _half_away(fraction * _INT32)
    if abs(multiplier) == _INT32:
        multiplier, exponent = multiplier // 2, exponent + 1
    if exponent < LEAST_EXPONENT or not multiplier:
        return Dyadic(0, 0)
    if exponent > GREATEST_EXPONENT:
        raise InputError(f"a rescaling factor of {factor:.3g} is above 2^30; check the scales of the layer")
    return Dyadic(multiplier, exponent)


def _half_away(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def divide(numerator: int, denominator: int, rounding: str) -> int:
    """numerator / denominator (above 0), rounded; `gemmlowp` is half away from zero here."""
    if rounding == "half_up":
        return (2 * numerator + denominator) // (2 * denominator)
    quotient, rest = divmod(abs(numerator), denominator)
    tie_up = quotient % 2 == 1 if rounding == "half_even" else True
    quotient += 2 * rest > denominator or (2 * rest == denominator and tie_up)
    return quotient if numerator >= 0 else -quotient


def rescale(value: int, by: Dyadic, rounding: str) -> int:
    """`value`, of 32 bits, times a dyadic factor, rounded."""
    if rounding == "gemmlowp":
        return _gemmlowp(value, by)
    product, right = value * by.multiplier, 31 - by.exponent
    return divide(product, 1 << right, rounding)


def _gemmlowp(value: int, by: Dyadic) -> int:
    """TFLite's `MultiplyByQuantizedMultiplier` of builds without TFLITE_SINGLE_ROUNDING."""
    left, right = max(by.exponent, 0), max(-by.exponent, 0)
    return rounding_divide_by_power(doubling_high_multiply(value << left, by.multiplier), right)


def doubling_high_multiply(a: int, b: int) -> int:
    """gemmlowp's `SaturatingRoundingDoublingHighMul`: the high 32 bits of 2 a b, rounded, at most 2^31 - 1."""
    if a == b == -_INT32:
        return _INT32 - 1
    product = a * b
    nudged = product + (1 << 30 if product >= 0 else 1 - (1 << 30))
    return nudged >> 31 if nudged >= 0 else -(-nudged >> 31)  # C divides towards zero


def rounding_divide_by_power(value: int, exponent: int) -> int:
    """gemmlowp's `RoundingDivideByPOT`: value / 2^exponent, ties away from zero."""
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (value < 0)
    return (value >> exponent) + ((value & mask) > threshold)
