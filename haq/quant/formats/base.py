"""What a number format is to the rest of `haq`: how it is calibrated, what a tensor becomes in it, what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from haq.quant.histogram import Histogram
from haq.values.formats import Format

Arrays = Mapping[str, Tensor]
"""What a weight is stored as, by name."""


class Quantizer(Protocol):
    """Maps a tensor to the nearest values that a format can hold: fake quantization. Shape and dtype stay."""

    def __call__(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class IntegerCodes(Protocol):
    """A quantizer of a weight's rows whose values are (code - zero point) * scale."""

    def integer_codes(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes `[rows, n]` int32, scale `[rows, 1]` and zero point `[rows, 1]` int32."""


@runtime_checkable
class Coder(Protocol):
    """A quantizer of a weight's rows `[rows, n]` that stores them as arrays of its own.

    `decode(encode(rows))` is bit for bit what the quantizer returns for float32 rows; a coder that `NumberFormat.coder`
    made decodes what any other one of the format encoded.
    """

    def __call__(self, x: Tensor) -> Tensor: ...

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        """The arrays to be stored: codes (uint8, unpacked) and what they are multiplied with."""

    def decode(self, arrays: Arrays, columns: int) -> Tensor:
        """Rows of `columns` values again, float32."""

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        """The shape of each array of a weight `[rows, columns]`."""

    @property
    def widths(self) -> Mapping[str, int]:
        """The bits that the values of an array really take, of those arrays that are to be packed."""


@runtime_checkable
class InputQuantizer(Protocol):
    """A quantizer of activations that can be written into a file."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def to_doc(self) -> dict[str, Any]:
        """Plain values; the format's `from_doc` makes the quantizer of them again."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How ranges are found; what a format has no use for, it leaves alone.

    Attributes:
        scheme: `symmetric` or `affine`.
        method: `minmax`, `percentile`, `mse`, `balanced` (weights), `entropy`, `octav`, `ema` (activations).
        percentile: for the method of that name.
        axis: of an activation along which blocks that share a scale lie, counted from the end.
        rounding: of integer weights: `nearest` (even), `floor`, `ceil` or `stochastic`.
        seed: of stochastic rounding.
        decay: of moving averages, for the method `ema`.
    """

    scheme: str
    method: str
    percentile: float
    axis: int = -1
    rounding: str = "nearest"
    seed: int = 0
    decay: float = 0.9


class NumberFormat:
    """All formats of a family: one file of this folder each, and a line in `haq.quant.formats.all`.

    Attributes:
        family: its name in `haq.values.families`, which says what can be known without computing.
    """

    family: ClassVar[str]

    def weight_quantizer(self, rows: Tensor, fmt: Format, how: Calibration) -> Quantizer:
        """The quantizer of a weight matrix `[rows, n]`, float32: a `Coder`, one with `IntegerCodes`, or of floats."""
        raise NotImplementedError

    def activation_quantizer(self, seen: Histogram, fmt: Format, how: Calibration) -> Quantizer:
        """The quantizer of an activation of which `seen` was seen."""
        raise NotImplementedError

    def coder(self, fmt: Format) -> Coder | None:
        """What decodes stored weights; `None` for integers times a scale, and floats."""
        return None

    def from_doc(self, doc: Mapping[str, Any], fmt: Format) -> Quantizer:
        """The activation quantizer that `to_doc` told about."""
        raise NotImplementedError
