"""Binary values: -scale or +scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from haq.quant.formats.base import Calibration, NumberFormat, Quantizer
from haq.quant.formats.integer import PerTensorInteger
from haq.quant.histogram import Histogram
from haq.quant.ranges import integer_activation
from haq.values.formats import Format


@dataclass(frozen=True, slots=True, eq=False)
class Binary:
    """-scale or +scale, by the sign (zero counts as positive); scale is `[rows, 1]`, or 0-d for a whole tensor."""

    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, self.scale, -self.scale)

    def integer_codes(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = torch.where(rows >= 0, 1, -1).to(torch.int32)
        return codes, self.scale, torch.zeros_like(self.scale, dtype=torch.int32)

    def to_doc(self) -> dict[str, Any]:
        return {"kind": "binary", "scale": float(self.scale)}


class BinaryFormat(NumberFormat):
    """A scale for each row: E|w|."""

    family = "binary"

    def weight_quantizer(self, rows: Tensor, fmt: Format, how: Calibration) -> Quantizer:
        return binary_quantizer(rows)

    def activation_quantizer(self, seen: Histogram, fmt: Format, how: Calibration) -> Quantizer:
        """-E|x|, +E|x|; where nothing negative was seen, the sign says nothing: {0, scale}."""
        if seen.negative:
            return Binary(torch.tensor(seen.mean_size()))
        return integer_activation(seen, 1, replace(how, scheme="affine"))

    def from_doc(self, doc: Mapping[str, Any], fmt: Format) -> Quantizer:
        return PerTensorInteger.from_doc(doc) if doc["kind"] == "integer" else Binary(torch.tensor(doc["scale"]))


def binary_quantizer(rows: Tensor) -> Binary:
    """XNOR-Net (Rastegari et al. 2016, equation 6): scale E|w|."""
    return Binary(rows.abs().mean(1, keepdim=True))
