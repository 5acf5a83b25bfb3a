"""MX4, MX6 and MX9: shared micro-exponents (Darvish Rouhani et al., "With shared microexponents, a little shifting goes
a long way", ISCA 2023, table II and section 3): blocks of 16 share an exponent, pairs of values one bit more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from haq.quant.formats.base import Arrays, Coder
from haq.quant.formats.blocks import BlockFormat, Dynamic, cut, uncut
from haq.quant.formats.minifloat import exponent_of, power_of_two
from haq.values.formats import Format

_BLOCK, _PAIR = 16, 2
_BIAS = 127


@dataclass(frozen=True, slots=True)
class MicroExponents(Dynamic):
    """Sign and magnitude of `mantissa` bits, the first of weight 2^(E - t); t is 1 for a pair that is below 2^E.

    Rounding is to nearest even, and saturates.

    Attributes:
        mantissa: 7 (MX9), 4 (MX6) or 2 (MX4).
        axis: of the blocks.
    """

    mantissa: int
    axis: int = -1

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        blocks = cut(rows, _BLOCK)
        shared = exponent_of(blocks.abs().amax(2)).clamp(min=-_BIAS + self.mantissa)
        pairs = cut(rows, _PAIR)
        of_pair = cut(exponent_of(pairs.abs().amax(2)), _BLOCK // _PAIR)
        shift = (of_pair < shared[..., None]).to(torch.int32)
        step = (shared[..., None] - shift - self.mantissa + 1).repeat_interleave(_PAIR, 2)
        steps = (blocks * power_of_two(-step)).round_()
        size = steps.abs().clamp_(max=2**self.mantissa - 1).to(torch.uint8)
        codes = size | ((steps < 0).to(torch.uint8) << self.mantissa)
        micro = uncut(shift.to(torch.uint8), pairs.shape[1])
        return {
            "codes": uncut(codes, rows.shape[1]),
            "micro": micro,
            "exponent": (shared + _BIAS).to(torch.uint8),
        }

    def decode(self, arrays: Arrays, columns: int) -> Tensor:
        codes = cut(arrays["codes"], _BLOCK)
        size = (codes & 2**self.mantissa - 1).to(torch.float32)
        signed = torch.where(codes >= 2**self.mantissa, -size, size)
        shift = cut(arrays["micro"].to(torch.int32), _BLOCK // _PAIR).repeat_interleave(_PAIR, 2)
        step = arrays["exponent"].to(torch.int32)[..., None] - _BIAS - shift - self.mantissa + 1
        return uncut(signed * power_of_two(step), columns)

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {
            "codes": (rows, columns),
            "micro": (rows, -(-columns // _PAIR)),
            "exponent": (rows, -(-columns // _BLOCK)),
        }

    @property
    def widths(self) -> Mapping[str, int]:
        return {"micro": 1} | ({} if self.mantissa == 7 else {"codes": self.mantissa + 1})

    def to_doc(self) -> dict[str, Any]:
        return {"kind": "micro-exponents", "axis": self.axis}


class MicroExponentsFormat(BlockFormat):
    """Nothing to calibrate: exponents follow the values."""

    family = "micro-exponents"

    def make(self, fmt: Format, axis: int) -> Coder:
        return MicroExponents(fmt.bits - 1, axis)
