"""OCP microscaling formats (MX 1.0, 2023): blocks of 32 share a power of two; values are small floats or int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from haq.quant.formats.base import Arrays, Coder
from haq.quant.formats.blocks import BlockFormat, Dynamic, cut, uncut
from haq.quant.formats.minifloat import NAMED, exponent_of, power_of_two
from haq.values.formats import Format

_BLOCK = 32
_BIAS = 127
_INT8_STEPS = 64
"""An int8 element counts 64ths."""


@dataclass(frozen=True, slots=True)
class Microscaling(Dynamic):
    """Scale 2^(floor(log2 max|x|) - emax), rounding to nearest even, saturating.

    Attributes:
        element: `fp8_e4m3`, `fp8_e5m2`, `fp6_e2m3`, `fp6_e3m2`, `fp4` or `int8`.
        axis: of the blocks.
    """

    element: str
    axis: int = -1

    def _rounded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Elements in blocks, and their exponents."""
        blocks = cut(rows, _BLOCK)
        number = NAMED.get(self.element)
        largest = 0 if number is None else number.largest_exponent
        exponent = (exponent_of(blocks.abs().amax(2)) - largest).clamp(-_BIAS, _BIAS)
        scaled = blocks * power_of_two(-exponent)[..., None]
        if number is None:
            return (scaled * _INT8_STEPS).round_().clamp_(-127, 127) / _INT8_STEPS, exponent
        return number.round(scaled), exponent

    def nearest(self, rows: Tensor) -> Tensor:
        values, exponent = self._rounded(rows)
        return uncut(values * power_of_two(exponent)[..., None], rows.shape[1])

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        values, exponent = self._rounded(rows)
        number = NAMED.get(self.element)
        codes = (values * _INT8_STEPS).to(torch.int8).view(torch.uint8) if number is None else number.encode(values)
        return {"codes": uncut(codes, rows.shape[1]), "exponent": (exponent + _BIAS).to(torch.uint8)}

    def decode(self, arrays: Arrays, columns: int) -> Tensor:
        codes, number = arrays["codes"], NAMED.get(self.element)
        values = codes.view(torch.int8).to(torch.float32) / _INT8_STEPS if number is None else number.decode(codes)
        scale = power_of_two(arrays["exponent"].to(torch.int32) - _BIAS)
        return uncut(cut(values, _BLOCK) * scale[..., None], columns)

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"codes": (rows, columns), "exponent": (rows, -(-columns // _BLOCK))}

    @property
    def widths(self) -> Mapping[str, int]:
        number = NAMED.get(self.element)
        return {} if number is None or number.bits == 8 else {"codes": number.bits}

    def to_doc(self) -> dict[str, Any]:
        return {"kind": "microscaling", "axis": self.axis}


class MicroscalingFormat(BlockFormat):
    """Nothing to calibrate: scales follow the values."""

    family = "microscaling"

    def make(self, fmt: Format, axis: int) -> Coder:
        return Microscaling(fmt.name.removeprefix("mx"), axis)
