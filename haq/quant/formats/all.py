"""Every number format by the name of its family: the one list of them."""

from __future__ import annotations

from haq.quant.formats.base import Coder, NumberFormat
from haq.quant.formats.binary import BinaryFormat
from haq.quant.formats.codebook import KMeansFormat
from haq.quant.formats.half import FloatFormat
from haq.quant.formats.micro_exponents import MicroExponentsFormat
from haq.quant.formats.microscaling import MicroscalingFormat
from haq.quant.formats.normal_float import NormalFloatFormat
from haq.quant.formats.nvfp4 import NVFloatFormat
from haq.quant.formats.plain import GroupedIntegerFormat, IntegerFormat
from haq.quant.formats.power_of_two import PowersOfTwoFormat
from haq.quant.formats.product import ProductFormat
from haq.quant.formats.scaled_float import ScaledFloatFormat
from haq.quant.formats.ternary import TernaryFormat
from haq.quant.formats.vector import VectorScaledFormat
from haq.values.formats import Format

FORMATS: dict[str, NumberFormat] = {
    number_format.family: number_format
    for number_format in (
        IntegerFormat(),
        GroupedIntegerFormat(),
        TernaryFormat(),
        BinaryFormat(),
        FloatFormat(),
        ScaledFloatFormat(),
        MicroscalingFormat(),
        MicroExponentsFormat(),
        NVFloatFormat(),
        NormalFloatFormat(),
        VectorScaledFormat(),
        PowersOfTwoFormat(),
        KMeansFormat(),
        ProductFormat(),
    )
}


def number_format(fmt: Format) -> NumberFormat:
    """What computes in `fmt`."""
    return FORMATS[fmt.family.name]


def coder(fmt: Format) -> Coder | None:
    """What decodes weights stored in `fmt`; `None` for integers times a scale, and floats."""
    return number_format(fmt).coder(fmt)
