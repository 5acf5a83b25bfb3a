"""nvfp4: 4-bit floats in blocks of 16 with a scale of fp8_e4m3 each, and a float32 scale for the whole tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from haq.quant.formats.base import Arrays, Calibration, Coder, Quantizer
from haq.quant.formats.blocks import TINY, BlockFormat, Dynamic, cut, uncut
from haq.quant.formats.minifloat import E2M1, E4M3
from haq.quant.histogram import Histogram
from haq.values.formats import Format

_BLOCK = 16


@dataclass(frozen=True, slots=True)
class NVFloat(Dynamic):
    """Block scales max|x| / 6, in units of the tensor's scale max|X| / (6 * 448), rounded to fp8_e4m3.

    Attributes:
        tensor_scale: of an activation; `None`: found in the weight.
        axis: of the blocks.
    """

    tensor_scale: float | None = None
    axis: int = -1

    def _rounded(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Elements in blocks, the blocks' scales, and the tensor's."""
        if self.tensor_scale is None:
            tensor_scale = _tensor_scale(rows.abs().amax())
        else:
            tensor_scale = torch.tensor(self.tensor_scale, device=rows.device)
        blocks = cut(rows, _BLOCK)
        scale = E4M3.round(blocks.abs().amax(2) / E2M1.largest / tensor_scale)
        unit = (scale * tensor_scale)[..., None]
        # A block whose scale rounds to 0 is 0.
        scaled = torch.where(unit > 0, blocks / unit.clamp(min=TINY), torch.zeros_like(blocks))
        return E2M1.round(scaled), scale, tensor_scale

    def nearest(self, rows: Tensor) -> Tensor:
        values, scale, tensor_scale = self._rounded(rows)
        return uncut(values * (scale * tensor_scale)[..., None], rows.shape[1])

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        values, scale, tensor_scale = self._rounded(rows)
        codes = uncut(E2M1.encode(values), rows.shape[1])
        return {"codes": codes, "scale": E4M3.encode(scale), "tensor_scale": tensor_scale.reshape(1)}

    def decode(self, arrays: Arrays, columns: int) -> Tensor:
        unit = E4M3.decode(arrays["scale"]) * arrays["tensor_scale"]
        return uncut(cut(E2M1.decode(arrays["codes"]), _BLOCK) * unit[..., None], columns)

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"codes": (rows, columns), "scale": (rows, -(-columns // _BLOCK)), "tensor_scale": (1,)}

    @property
    def widths(self) -> Mapping[str, int]:
        return {"codes": 4}

    def to_doc(self) -> dict[str, Any]:
        return {"kind": "nvfp4", "axis": self.axis, "tensor_scale": self.tensor_scale}


def _tensor_scale(largest: Tensor) -> Tensor:
    scale = largest / (E2M1.largest * E4M3.largest)
    return torch.where(scale < TINY, torch.ones_like(scale), scale)


class NVFloatFormat(BlockFormat):
    """The scale of a whole activation is that of all that was seen; larger values saturate."""

    family = "nvfp4"

    def make(self, fmt: Format, axis: int) -> Coder:
        return NVFloat(axis=axis)

    def activation_quantizer(self, seen: Histogram, fmt: Format, how: Calibration) -> Quantizer:
        largest = torch.tensor(max(-seen.low, seen.high), dtype=torch.float32)
        return NVFloat(float(_tensor_scale(largest)), how.axis)

    def from_doc(self, doc: Mapping[str, Any], fmt: Format) -> Quantizer:
        return NVFloat(float(doc["tensor_scale"]), int(doc["axis"]))
