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
        """Bits of a code; `parts` are the groups of the name."""
        return int(parts[0])

    def codes(self, rows: int, columns: int, *parts: str) -> tuple[int, int]:
        """How many codes a weight of `rows` output channels of `columns` inputs has, and the bits of each."""
        return rows * columns, self.bits(*parts)

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


FAMILIES: tuple[Family, ...] = (Integers(), Ternary(), Binary(), Floats(), GroupedIntegers())


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
