"""Integers as number formats: one scale per row of a weight, one for an activation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from haq.quant.formats.base import Calibration, NumberFormat, Quantizer
from haq.quant.formats.binary import BinaryFormat
from haq.quant.formats.half import Identity
from haq.quant.histogram import Histogram
from haq.quant.ranges import integer_activation, integer_weight
from haq.values.formats import Format


class IntegerFormat(NumberFormat):
    """A symmetric 1-bit integer is binary: -1 and 0 would lose half of every filter."""

    family = "integer"

    def weight_quantizer(self, rows: Tensor, fmt: Format, how: Calibration) -> Quantizer:
        if fmt.bits == 1 and how.scheme == "symmetric":
            return BinaryFormat().weight_quantizer(rows, fmt, how)
        return integer_weight(rows, fmt.bits, how)

    def activation_quantizer(self, seen: Histogram, fmt: Format, how: Calibration) -> Quantizer:
        if fmt.bits == 1 and how.scheme == "symmetric":
            return BinaryFormat().activation_quantizer(seen, fmt, how)
        return integer_activation(seen, fmt.bits, how)

    def from_doc(self, doc: Mapping[str, Any], fmt: Format) -> Quantizer:
        if doc["kind"] == "float":  # wider than float32 can tell
            return Identity()
        return BinaryFormat().from_doc(doc, fmt)


class GroupedIntegerFormat(IntegerFormat):
    """Rows are groups of inputs here; all else is as in plain integers."""

    family = "grouped integer"
