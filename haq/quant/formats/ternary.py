"""Ternary weights: -scale, 0 or +scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from haq.quant.formats.base import Calibration, NumberFormat, Quantizer
from haq.quant.formats.integer import PerTensorInteger
from haq.quant.histogram import Histogram
from haq.values.formats import Format


@dataclass(frozen=True, slots=True, eq=False)
class Ternary:
    """-scale, 0 or +scale, by comparison with a threshold; both `[rows, 1]`, or 0-d for a whole tensor."""

    threshold: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(x.abs() > self.threshold, x.sign() * self.scale, torch.zeros_like(x))

    def integer_codes(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = torch.where(rows.abs() > self.threshold, rows.sign(), torch.zeros_like(rows))
        return codes.to(torch.int32), self.scale, torch.zeros_like(self.scale, dtype=torch.int32)

    def to_doc(self) -> dict[str, Any]:
        return {"kind": "ternary", "threshold": float(self.threshold), "scale": float(self.scale)}


class TernaryFormat(NumberFormat):
    """A threshold and a scale for each row, as Ternary Weight Networks have them."""

    family = "ternary"

    def weight_quantizer(self, rows: Tensor, fmt: Format, how: Calibration) -> Quantizer:
        return ternary_quantizer(rows)

    def activation_quantizer(self, seen: Histogram, fmt: Format, how: Calibration) -> Quantizer:
        """Ternary Weight Networks' threshold and scale, of what was seen."""
        centers, counts = seen.bins()
        threshold = 0.7 * seen.mean_size()
        above = counts * (centers.abs() > threshold)
        scale = float((centers.abs() * above).sum() / above.sum().clamp(min=1))
        return Ternary(torch.tensor(threshold), torch.tensor(scale))

    def from_doc(self, doc: Mapping[str, Any], fmt: Format) -> Quantizer:
        if doc["kind"] == "integer":  # as training leaves it: the integers -1 to 1
            return PerTensorInteger.from_doc(doc)
        return Ternary(torch.tensor(doc["threshold"]), torch.tensor(doc["scale"]))


def ternary_quantizer(rows: Tensor) -> Ternary:
    """Ternary Weight Networks (Li et al. 2016, eq. 5, 6): threshold 0.7 E|w|, scale E[|w|] over |w| > threshold."""
    size = rows.abs()
    threshold = 0.7 * size.mean(1, keepdim=True)
    above = size > threshold
    scale = (size * above).sum(1, keepdim=True) / above.sum(1, keepdim=True).clamp_(min=1)
    return Ternary(threshold, scale)
