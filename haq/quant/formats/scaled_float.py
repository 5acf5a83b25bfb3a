"""fp8_e4m3 and fp8_e5m2: 8-bit floats times a float32 scale for each row of a weight, or for an activation.

Micikevicius et al., "FP8 formats for deep learning" (2022). The scale brings the largest value to the format's largest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from haq.quant.formats.base import Arrays, Calibration, Coder, NumberFormat, Quantizer
from haq.quant.formats.blocks import TINY, along, straight
from haq.quant.formats.minifloat import NAMED, MiniFloat
from haq.quant.histogram import Histogram
from haq.values.formats import Format


@dataclass(frozen=True, slots=True)
class ScaledFloatRows:
    """Weights: a scale for each row, max |w| / largest."""

    number: MiniFloat

    def __call__(self, x: Tensor) -> Tensor:
        return along(x, -1, lambda rows: self.decode(self.encode(rows), rows.shape[1]))

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        scale = rows.abs().amax(1, keepdim=True) / self.number.largest
        scale = torch.where(scale < TINY, torch.ones_like(scale), scale)
        return {"codes": self.number.encode(self.number.round(rows / scale)), "scale": scale}

    def decode(self, arrays: Arrays, columns: int) -> Tensor:
        return self.number.decode(arrays["codes"]) * arrays["scale"]

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"codes": (rows, columns), "scale": (rows, 1)}

    @property
    def widths(self) -> Mapping[str, int]:
        return {}


@dataclass(frozen=True, slots=True)
class ScaledFloat:
    """Activations: one scale."""

    number: MiniFloat
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        scale = torch.tensor(self.scale, device=x.device)
        return straight(x, (self.number.round(x.detach().to(torch.float32) / scale) * scale).to(x.dtype))

    def to_doc(self) -> dict[str, Any]:
        return {"kind": "scaled float", "scale": self.scale}


class ScaledFloatFormat(NumberFormat):
    """The scale of an activation is of the range that `percentile` or `ema` finds, else of all that was seen."""

    family = "scaled float"

    def weight_quantizer(self, rows: Tensor, fmt: Format, how: Calibration) -> Quantizer:
        return self.coder(fmt)

    def activation_quantizer(self, seen: Histogram, fmt: Format, how: Calibration) -> Quantizer:
        ends = (seen.low, seen.high)
        if how.method == "percentile":
            ends = seen.percentile_range(how.percentile)
        elif how.method == "ema":
            ends = seen.averaged_range(how.decay)
        largest = max(-ends[0], ends[1])
        return ScaledFloat(NAMED[fmt.name], largest / NAMED[fmt.name].largest if largest > 0 else 1.0)

    def coder(self, fmt: Format) -> Coder:
        return ScaledFloatRows(NAMED[fmt.name])

    def from_doc(self, doc: Mapping[str, Any], fmt: Format) -> Quantizer:
        return ScaledFloat(NAMED[fmt.name], float(doc["scale"]))
