"""The families of number formats: their names, what a weight in them stores, and who can have them.

Plain facts, free of torch: search and cost models need no more. What a family computes stands in `haq/quant/formats`,
one file each, under the same name. To add a family: a class here with its line in `FAMILIES`, and that file.
"""

from __future__ import annotations

import re
from functools import cache
from typing import ClassVar

FLOAT32_BYTES = 4


class Family:
    """Formats that differ in numbers only, which are in their names.

    Attributes:
        name: of the family.
        grammar: of the names; its groups are the numbers.
        known: the names, for messages.
        weights_only: whether activations cannot have it.
        is_float: whether values are stored as floats, without any scale.
        is_integer: whether a device that multiplies integers can have it.
        is_ordered: whether it matters which weights lie side by side.
        exporters: who can write it; `None`: each exporter says itself what it lacks.
    """

    name: ClassVar[str]
    grammar: ClassVar[str]
    known: ClassVar[str]
    weights_only: ClassVar[bool] = False
    is_float: ClassVar[bool] = False
    is_integer: ClassVar[bool] = False
    is_ordered: ClassVar[bool] = False
    exporters: ClassVar[tuple[str, ...] | None] = None

    def bits(self, *parts: str) -> int:
        """Bits of a value; `parts` are the groups of the name."""
        return int(parts[0])

    def codes(self, rows: int, columns: int, *parts: str) -> tuple[int, ...]:
        """How many codes a weight of `rows` output channels of `columns` inputs has, array by array."""
        return (rows * columns,)

    def code_bits(self, *parts: str) -> int:
        """Bits of a code, which is a value unless the family says otherwise."""
        return self.bits(*parts)

    def parameter_bytes(self, rows: int, columns: int, *parts: str) -> int | None:
        """Bytes of all that is stored beside the codes; `None`: settings say how many scales there are."""
        return None

    def misfit(self, rows: int, columns: int, *parts: str) -> str | None:
        """Why a weight of that size cannot have the format; `None`: it can."""
        return None


class Integers(Family):
    """Integers times a scale for each tensor, channel or group, as the settings say."""

    name, known, is_integer = "integer", "int1 to int32", True
    grammar = r"int([1-9]|[12][0-9]|3[0-2])"


class GroupedIntegers(Family):
    """Integers with a scale for each group of inputs of an output channel."""

    name, known = "grouped integer", "int2 to int8 in groups of 2 to 99999, as in int4_g32"
    grammar = r"int([2-8])_g([2-9]|[1-9][0-9]{1,4})"
    weights_only = is_integer = is_ordered = True

    def codes(self, rows: int, columns: int, *parts: str) -> tuple[int, ...]:
        rest = columns % int(parts[1])
        return rows * (columns - rest), rows * rest  # full groups, and the shorter last ones


class Ternary(Family):
    """-1, 0 and 1 times a scale."""

    name, known, is_integer = "ternary", "ternary", True
    grammar = "(ternary)"

    def bits(self, *parts: str) -> int:
        return 2


class Binary(Family):
    """-1 and 1 times a scale."""

    name, known, is_integer = "binary", "binary", True
    grammar = "(binary)"

    def bits(self, *parts: str) -> int:
        return 1


class Floats(Family):
    """Floats as processors have them."""

    name, known, is_float = "float", "fp16, bf16, fp32", True
    grammar = "(fp16|bf16|fp32)"

    def bits(self, *parts: str) -> int:
        return 32 if parts[0] == "fp32" else 16

    def parameter_bytes(self, rows: int, columns: int, *parts: str) -> int:
        return 0


class _Coded(Family):
    """Formats whose weights are stored as arrays of their own: codes, and what they are to be multiplied with."""

    exporters: ClassVar[tuple[str, ...] | None] = ("torch",)


class ScaledFloats(_Coded):
    """8-bit floats times a float32 scale for each tensor, channel or group, as the settings say."""

    name, known = "scaled float", "fp8_e4m3, fp8_e5m2"
    grammar = "fp8_(e4m3|e5m2)"
    exporters = ("torch", "onnx")

    def bits(self, *parts: str) -> int:
        return 8


class Microscaling(_Coded):
    """OCP microscaling formats: blocks of 32 share a power of two of 8 bits."""

    name, known = "microscaling", "mxfp8_e4m3, mxfp8_e5m2, mxfp6_e2m3, mxfp6_e3m2, mxfp4, mxint8"
    grammar = "mx(fp8_e4m3|fp8_e5m2|fp6_e2m3|fp6_e3m2|fp4|int8)"
    is_ordered = True

    def bits(self, *parts: str) -> int:
        return next(int(digit) for digit in parts[0] if digit.isdigit())

    def parameter_bytes(self, rows: int, columns: int, *parts: str) -> int:
        return rows * ceil_div(columns, 32)


class MicroExponents(_Coded):
    """Blocks of 16 share an exponent of 8 bits, pairs one of 1 bit more."""

    name, known = "micro-exponents", "mx4, mx6, mx9"
    grammar = "mx([469])"
    is_ordered = True

    def bits(self, *parts: str) -> int:
        return int(parts[0]) - 1  # sign and mantissa: 8/16 + 1/2 bits of exponents make up the one that is missing

    def parameter_bytes(self, rows: int, columns: int, *parts: str) -> int:
        return rows * ceil_div(columns, 16) + ceil_div(rows * ceil_div(columns, 2), 8)


class NVFloat(_Coded):
    """4-bit floats in blocks of 16 with a scale of fp8_e4m3, and a float32 scale for the tensor."""

    name, known = "nvfp4", "nvfp4"
    grammar = "nvfp(4)"
    is_ordered = True

    def parameter_bytes(self, rows: int, columns: int, *parts: str) -> int:
        return rows * ceil_div(columns, 16) + FLOAT32_BYTES


class NormalFloat(_Coded):
    """Quantiles of a normal distribution in blocks of 64 with a float32 scale."""

    name, known = "normal float", "nf4"
    grammar = "nf(4)"
    weights_only = is_ordered = True

    def parameter_bytes(self, rows: int, columns: int, *parts: str) -> int:
        return rows * ceil_div(columns, 64) * FLOAT32_BYTES


class VectorScaled(_Coded):
    """Integers with an integer scale for each vector of 16 and a float32 scale for each channel."""

    name, known = "vector-scaled", "vs2_s3 to vs8_s8 (bits of a weight, bits of its vector's scale)"
    grammar = "vs([2-8])_s([3-8])"
    weights_only = is_ordered = True

    def parameter_bytes(self, rows: int, columns: int, *parts: str) -> int:
        return rows * FLOAT32_BYTES + ceil_div(rows * ceil_div(columns, 16) * int(parts[1]), 8)


class PowersOfTwo(_Coded):
    """A sign and one of 2^(b - 1) - 1 powers of two, or 0; an exponent for each channel."""

    name, known = "power of two", "pot2 to pot6"
    grammar = "pot([2-6])"
    weights_only = is_ordered = True

    def parameter_bytes(self, rows: int, columns: int, *parts: str) -> int:
        return rows


class KMeans(_Coded):
    """A codebook of 2^b float32 centroids for each layer."""

    name, known = "k-means", "kmeans2 to kmeans8"
    grammar = "kmeans([2-8])"
    weights_only = is_ordered = True

    def parameter_bytes(self, rows: int, columns: int, *parts: str) -> int:
        return FLOAT32_BYTES << int(parts[0])

    def misfit(self, rows: int, columns: int, *parts: str) -> str | None:
        centroids = 1 << int(parts[0])
        return None if centroids <= rows * columns else f"{centroids} centroids for {rows * columns} weights"


class ProductQuantization(_Coded):
    """Rows cut into sub-vectors of d weights; for each position a codebook of 2^c, which all rows share."""

    name, known = "product quantization", "pq2_d2 to pq8_d16 (bits of a code, weights of a sub-vector)"
    grammar = "pq([2-8])_d([2-9]|1[0-6])"
    weights_only = is_ordered = True

    def bits(self, *parts: str) -> int:
        return ceil_div(int(parts[0]), int(parts[1]))

    def codes(self, rows: int, columns: int, *parts: str) -> tuple[int, ...]:
        return (rows * ceil_div(columns, int(parts[1])),)

    def code_bits(self, *parts: str) -> int:
        return int(parts[0])

    def parameter_bytes(self, rows: int, columns: int, *parts: str) -> int:
        return FLOAT32_BYTES * columns << int(parts[0])

    def misfit(self, rows: int, columns: int, *parts: str) -> str | None:
        centroids = 1 << int(parts[0])
        return None if centroids <= rows else f"codebooks of {centroids} sub-vectors for {rows} output channels"


FAMILIES: tuple[Family, ...] = (
    Integers(),
    Ternary(),
    Binary(),
    Floats(),
    ScaledFloats(),
    Microscaling(),
    MicroExponents(),
    NVFloat(),
    GroupedIntegers(),
    NormalFloat(),
    VectorScaled(),
    PowersOfTwo(),
    KMeans(),
    ProductQuantization(),
)


@cache
def find(name: str) -> tuple[Family, tuple[str, ...]]:
    """The family of the format called `name`, and the numbers in the name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    for family in FAMILIES:
        match = re.fullmatch(family.grammar, name)
        if match is not None:
            return family, match.groups()
    anywhere = ", ".join(family.known for family in FAMILIES if not family.weights_only)
    weights = ", ".join(family.known for family in FAMILIES if family.weights_only)
    raise ValueError(f"unknown number format {name!r}; known: {anywhere}, and for weights {weights}")


def names_of_precisions() -> str:
    """A pattern, without groups, of the names that stand in a precision; plain integers stand as their bits alone."""
    named = [family.grammar.replace("(", "(?:") for family in FAMILIES if not isinstance(family, Integers)]
    return "|".join([r"\d+", *named])


def ceil_div(value: int, divisor: int) -> int:
    """`value / divisor`, rounded up."""
    return -(-value // divisor)
