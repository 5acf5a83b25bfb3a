"""Powers of two: weights whose products are shifts (Zhou et al., "Incremental network quantization", ICLR 2017).

A weight is 0 or a sign and one of 2^(b - 1) - 1 neighbouring powers of two, whose largest the channel stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from haq.quant.formats.base import Arrays, Coder
from haq.quant.formats.blocks import BlockFormat, Dynamic
from haq.quant.formats.minifloat import exponent_of, power_of_two
from haq.values.formats import Format

_NEAREST = 4.0 / 3.0
"""|x| from 1.5 * 2^(e - 1) on is nearest to 2^e."""


@dataclass(frozen=True, slots=True)
class PowersOfTwo(Dynamic):
    """The nearest power of two of the window below the channel's largest, or 0; half-way values go up.

    Attributes:
        bits: of a code: the sign, then 0 for zero and k for the exponent first + k - 1.
    """

    bits: int
    axis: int = -1

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        window = 2 ** (self.bits - 1) - 1
        exponent = exponent_of(rows * _NEAREST)
        last = exponent.amax(1, keepdim=True).clamp(min=-126 + window)
        place = (exponent - last + window).clamp(max=window)
        # Between 0 and the least power, the nearer: half of it is where the next lower exponent ends.
        above = rows.abs() >= power_of_two(last - window) * torch.ones_like(rows)
        place = torch.where(above, place.clamp(min=1), torch.zeros_like(place))
        codes = place.to(torch.uint8) | ((rows < 0) & (place > 0)).to(torch.uint8) << self.bits - 1
        return {"codes": codes, "exponent": last.to(torch.int8)}

    def decode(self, arrays: Arrays, columns: int) -> Tensor:
        window, codes = 2 ** (self.bits - 1) - 1, arrays["codes"]
        place = (codes & window).to(torch.int32)
        size = power_of_two(arrays["exponent"].to(torch.int32) - window + place)
        signed = torch.where(codes > window, -size, size)
        return torch.where(place > 0, signed, torch.zeros_like(signed))

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"codes": (rows, columns), "exponent": (rows, 1)}

    @property
    def widths(self) -> Mapping[str, int]:
        return {"codes": self.bits}


def shifted_products(inputs: Tensor, arrays: Arrays, bits: int) -> tuple[Tensor, Tensor]:
    """`inputs @ weight.T` by shifts and additions alone: what hardware without multipliers does.

    Args:
        inputs: integers `[batch, n]`, small enough that 2^(bits - 1) - 2 shifts and a sum over n stay in 64 bits.
        arrays: a weight `[rows, n]` as `PowersOfTwo(bits)` stores it.
        bits: of a code.

    Returns:
        Sums `[batch, rows]` int64, and the exponents `[rows]` of the power of two that they count.
    """
    window = 2 ** (bits - 1) - 1
    codes = arrays["codes"].to(torch.int64)
    place = codes & window
    shifted = torch.bitwise_left_shift(inputs.to(torch.int64)[:, None, :], (place - 1).clamp(min=0)[None])
    signed = torch.where(codes > window, -shifted, shifted)
    sums = torch.where(place > 0, signed, torch.zeros_like(signed)).sum(2)
    return sums, arrays["exponent"].to(torch.int64).flatten() - window + 1


class PowersOfTwoFormat(BlockFormat):
    """Weights only; nothing to calibrate."""

    family = "power of two"

    def make(self, fmt: Format, axis: int) -> Coder:
        return PowersOfTwo(fmt.bits, axis)
