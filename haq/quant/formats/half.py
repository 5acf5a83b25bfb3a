"""Floats: fp16, bf16, and fp32 as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from haq.quant.formats.base import Calibration, NumberFormat, Quantizer
from haq.quant.formats.integer import LARGEST_INTEGER_BITS
from haq.quant.histogram import Histogram
from haq.values.formats import Format


@dataclass(frozen=True, slots=True)
class Identity:
    """fp32, and integers too wide to be told from it."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def to_doc(self) -> dict[str, Any]:
        return {"kind": "float"}


@dataclass(frozen=True, slots=True)
class Cast:
    """fp16 or bf16: round to the nearest and back."""

    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).to(x.dtype)

    def to_doc(self) -> dict[str, Any]:
        return {"kind": "float"}


class FloatFormat(NumberFormat):
    """Floats: nothing to calibrate."""

    family = "float"

    def weight_quantizer(self, rows: Tensor, fmt: Format, how: Calibration) -> Quantizer:
        return _exact(fmt)

    def activation_quantizer(self, seen: Histogram, fmt: Format, how: Calibration) -> Quantizer:
        return _exact(fmt)

    def from_doc(self, doc: Mapping[str, Any], fmt: Format) -> Quantizer:
        return _exact(fmt)


def _exact(fmt: Format) -> Quantizer:
    quantizer = float_quantizer(fmt)
    assert quantizer is not None
    return quantizer


def float_quantizer(fmt: Format) -> Quantizer | None:
    """The quantizer of a format that needs no calibration, `None` for all others."""
    if fmt.name == "fp32" or (fmt.is_integer and fmt.bits > LARGEST_INTEGER_BITS):
        return Identity()
    if fmt.is_float:
        return Cast(torch.float16 if fmt.name == "fp16" else torch.bfloat16)
    return None
