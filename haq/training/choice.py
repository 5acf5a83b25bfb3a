"""Which trainable quantizer trains a calibrated one: one line for each kind of quantizer."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

from haq.quant.formats.base import Quantizer
from haq.quant.formats.binary import Binary
from haq.quant.formats.codebook import Codebook
from haq.quant.formats.half import Cast, Identity
from haq.quant.formats.integer import PerRowInteger, PerTensorInteger
from haq.quant.formats.product import ProductCodebooks
from haq.quant.formats.ternary import Ternary
from haq.training.coded_quantizers import CodebookWeight, Straight
from haq.training.learned_quantizers import PACT, DoReFa, Integer, LearnedStep, StraightThrough, TrainableQuantizer
from haq.training.low_bit_quantizers import (
    BinaryActivation,
    BinaryWeight,
    HalfFloat,
    TernaryActivation,
    TernaryWeight,
    TrainedTernaryWeight,
    Untouched,
)

Made = tuple[Hashable, Callable[[], TrainableQuantizer]]
"""The kind of a trainable quantizer, and how to make one."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """Which quantizers train integer formats."""

    weight: Callable[[int], Integer]
    activation: Callable[[None], Integer]


SCHEMES: dict[str, Scheme] = {
    "lsq": Scheme(LearnedStep, LearnedStep),
    "pact": Scheme(DoReFa, PACT),
    "dorefa": Scheme(DoReFa, StraightThrough),
    "ste": Scheme(StraightThrough, StraightThrough),
}
TERNARY: dict[str, Callable[[int], TrainableQuantizer]] = {
    "twn": lambda rows: TernaryWeight(),
    "ttq": TrainedTernaryWeight,
}


@dataclass(frozen=True)
class Choice:
    """What a training uses for each kind of calibrated quantizer.

    Attributes:
        scheme: a name in `SCHEMES`.
        ternary: a name in `TERNARY`.
    """

    scheme: str
    ternary: str

    def __call__(self, calibrated: Quantizer, rows: int | None) -> Made:
        """The trainable quantizer for a calibrated one.

        Args:
            calibrated: of a weight's rows or of an activation.
            rows: of the weight; `None` for an activation.
        """
        return _BY_TYPE.get(type(calibrated), _straight)(self, calibrated, rows)


def _integer(choice: Choice, calibrated: Quantizer, rows: int | None) -> Made:
    scheme = SCHEMES[choice.scheme]
    return "integer", partial(scheme.activation, None) if rows is None else partial(scheme.weight, rows)


def _ternary(choice: Choice, calibrated: Quantizer, rows: int | None) -> Made:
    return "ternary", TernaryActivation if rows is None else partial(TERNARY[choice.ternary], rows)


def _binary(choice: Choice, calibrated: Quantizer, rows: int | None) -> Made:
    return "binary", BinaryActivation if rows is None else BinaryWeight


def _half(choice: Choice, calibrated: Quantizer, rows: int | None) -> Made:
    assert isinstance(calibrated, Cast)
    return calibrated.dtype, partial(HalfFloat, calibrated.dtype)


def _codebook(choice: Choice, calibrated: Quantizer, rows: int | None) -> Made:
    assert isinstance(calibrated, Codebook | ProductCodebooks)
    shape = calibrated.centroids.shape
    return (type(calibrated), shape), partial(CodebookWeight, shape)


def _straight(choice: Choice, calibrated: Quantizer, rows: int | None) -> Made:
    assert isinstance(calibrated, Hashable)
    return calibrated, partial(Straight, calibrated)


_BY_TYPE: dict[type, Callable[[Choice, Quantizer, int | None], Made]] = {
    Identity: lambda choice, calibrated, rows: ("float", Untouched),
    Cast: _half,
    PerRowInteger: _integer,
    PerTensorInteger: _integer,
    Ternary: _ternary,
    Binary: _binary,
    Codebook: _codebook,
    ProductCodebooks: _codebook,
}
"""All others have nothing to learn."""
