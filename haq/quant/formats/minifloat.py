"""Small floats: a sign, a few bits of exponent and mantissa, no infinities; rounding to them and their codes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_BIAS, _MANTISSA = 127, 23
"""Of float32."""


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent as float32, exactly; exponents from -127 to 127, int32."""
    bits = torch.where(exponent > -_BIAS, (exponent + _BIAS) << _MANTISSA, 1 << _MANTISSA - 1)
    return bits.to(torch.int32).view(torch.float32)


def exponent_of(x: Tensor) -> Tensor:
    """floor(log2 |x|) of float32 as int32, exactly; -127 for what is smaller than 2^-126, and for 0."""
    return ((x.contiguous().view(torch.int32) >> _MANTISSA) & 0xFF) - _BIAS


@dataclass(frozen=True)
class MiniFloat:
    """A float format of `1 + exponent_bits + mantissa_bits` bits.

    Attributes:
        exponent_bits: with the bias 2^(exponent_bits - 1) - 1; exponent 0 is for subnormals.
        mantissa_bits: without the leading one.
        reserved: codes at the top that stand for no number (infinity, NaN).
    """

    exponent_bits: int
    mantissa_bits: int
    reserved: int = 0

    @property
    def bits(self) -> int:
        """Of a code."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is taken off the exponent's code."""
        return int(2 ** (self.exponent_bits - 1)) - 1

    @cached_property
    def positive(self) -> Tensor:
        """The numbers that are not negative, in the order of their codes: float32."""
        codes = torch.arange(2 ** (self.bits - 1) - self.reserved)
        exponent, fraction = codes >> self.mantissa_bits, codes & (1 << self.mantissa_bits) - 1
        lead = (exponent > 0).to(torch.float64)
        steps = lead * 2**self.mantissa_bits + fraction
        return torch.ldexp(steps, exponent.clamp(min=1) - self.bias - self.mantissa_bits).to(torch.float32)

    @property
    def largest(self) -> float:
        """The largest number."""
        return float(self.positive[-1])

    @property
    def largest_exponent(self) -> int:
        """floor(log2 largest)."""
        return int(exponent_of(self.positive[-1:]))

    def round(self, x: Tensor) -> Tensor:
        """The nearest numbers, ties to the even code; what is larger becomes the largest (OCP MX 1.0, 5.3.3.2)."""
        steps = exponent_of(x).clamp(min=1 - self.bias) - self.mantissa_bits
        rounded = (x * power_of_two(-steps)).round_().mul_(power_of_two(steps))
        return rounded.clamp_(-self.largest, self.largest)

    def encode(self, x: Tensor) -> Tensor:
        """The codes of numbers that `round` returned, uint8."""
        magnitude = torch.searchsorted(self.positive.to(x.device), x.abs().contiguous()).to(torch.uint8)
        return magnitude | (torch.signbit(x).to(torch.uint8) << self.bits - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """The numbers again, float32."""
        top = 1 << self.bits - 1
        size = self.positive.to(codes.device)[(codes & top - 1).long()]
        return torch.where(codes >= top, -size, size)


E4M3 = MiniFloat(4, 3, reserved=1)
E5M2 = MiniFloat(5, 2, reserved=4)
E3M2 = MiniFloat(3, 2)
E2M3 = MiniFloat(2, 3)
E2M1 = MiniFloat(2, 1)
NAMED = {"fp8_e4m3": E4M3, "fp8_e5m2": E5M2, "fp6_e3m2": E3M2, "fp6_e2m3": E2M3, "fp4": E2M1}
