"""Two-level scales (VS-Quant: Dai et al., MLSys 2021, section 4.4): an integer scale for each vector of 16 inputs, in
units of a float32 scale for each output channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from haq.quant.formats.base import Arrays, Coder
from haq.quant.formats.blocks import TINY, BlockFormat, Dynamic, cut, uncut
from haq.values.formats import Format

_VECTOR = 16


@dataclass(frozen=True, slots=True)
class VectorScaled(Dynamic):
    """Scales max|w| / (2^(b-1) - 1), rounded to multiples 1 to 2^M - 1 of the channel's largest over 2^M - 1.

    The paper may round a scale to 0, which would lose the vector; here the least is one unit.

    Attributes:
        bits: of a weight, symmetric without the lowest code.
        scale_bits: of a vector's scale, unsigned.
    """

    bits: int
    scale_bits: int
    axis: int = -1

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        most, top = 2 ** (self.bits - 1) - 1, 2**self.scale_bits - 1
        vectors = cut(rows, _VECTOR)
        wanted = vectors.abs().amax(2) / most
        unit = wanted.amax(1, keepdim=True) / top
        unit = torch.where(unit < TINY, torch.ones_like(unit), unit)
        steps = (wanted / unit).round_().clamp_(1, top)
        codes = (vectors / (steps * unit)[..., None]).round_().clamp_(-most, most) + 2 ** (self.bits - 1)
        return {
            "codes": uncut(codes.to(torch.uint8), rows.shape[1]),
            "vector_scale": steps.to(torch.uint8),
            "scale": unit,
        }

    def decode(self, arrays: Arrays, columns: int) -> Tensor:
        steps = arrays["codes"].to(torch.float32) - 2 ** (self.bits - 1)
        scale = arrays["vector_scale"].to(torch.float32) * arrays["scale"]
        return uncut(cut(steps, _VECTOR) * scale[..., None], columns)

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        vectors = -(-columns // _VECTOR)
        return {"codes": (rows, columns), "vector_scale": (rows, vectors), "scale": (rows, 1)}

    @property
    def widths(self) -> Mapping[str, int]:
        return {"codes": self.bits, "vector_scale": self.scale_bits}


class VectorScaledFormat(BlockFormat):
    """Weights only; nothing to calibrate."""

    family = "vector-scaled"

    def make(self, fmt: Format, axis: int) -> Coder:
        bits, scale_bits = fmt.numbers
        return VectorScaled(bits, scale_bits, axis)
