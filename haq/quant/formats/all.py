"""Every number format by the name of its family: the one list of them."""

from __future__ import annotations

from haq.quant.formats.base import Coder, NumberFormat
from haq.quant.formats.binary import BinaryFormat
from haq.quant.formats.half import FloatFormat
from haq.quant.formats.plain import GroupedIntegerFormat, IntegerFormat
from haq.quant.formats.ternary import TernaryFormat
from haq.values.formats import Format

FORMATS: dict[str, NumberFormat] = {
    number_format.family: number_format
    for number_format in (
        IntegerFormat(),
        GroupedIntegerFormat(),
        TernaryFormat(),
        BinaryFormat(),
        FloatFormat(),
    )
}


def number_format(fmt: Format) -> NumberFormat:
    """What computes in `fmt`."""
    return FORMATS[fmt.family.name]


def coder(fmt: Format) -> Coder | None:
    """What decodes weights stored in `fmt`; `None` for integers times a scale, and floats."""
    return number_format(fmt).coder(fmt)
