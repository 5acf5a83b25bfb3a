"""The plain values that every part of `haq` shares: frozen, free of torch, JSON both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from haq.values.families import Family, find, names_of_precisions


@dataclass(frozen=True, slots=True, order=True)
class Format:
    """A number format. Build it with `Format.parse`, which knows every name.

    Attributes:
        bits: storage bits per value, scales apart (ternary: 2, binary: 1).
        name: `int1` ... `int32`, `ternary`, `binary`, `fp16`, `bf16`, `fp32`, `mxfp4`, for weights `int4_g32` (4-bit
            integers with a scale for each group of 32 inputs of an output channel), and all that `families` knows.
    """

    bits: int
    name: str

    @classmethod
    def parse(cls, name: str) -> Format:
        """The format called `name`.

        Raises:
            ValueError: unknown name; the message lists the known ones.
        """
        family, parts = find(name)
        return cls(family.bits(*parts), name)

    @classmethod
    def integer(cls, bits: int) -> Format:
        """The plain integer format of `bits` bits."""
        return cls.parse(f"int{bits}")

    @property
    def family(self) -> Family:
        """What this format shares with those that differ in numbers only."""
        return find(self.name)[0]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers in the name: of `int4_g32` 4 and 32."""
        return tuple(int(part) for part in find(self.name)[1] if part.isdigit())

    @property
    def is_float(self) -> bool:
        """Whether values are stored as floats, without a scale: fp16, bf16 and fp32."""
        return self.family.is_float

    @property
    def is_integer(self) -> bool:
        """Whether the name says no more than the bits: a plain integer, written as `4` in `w4a8`."""
        return self.name == f"int{self.bits}"

    @property
    def group_size(self) -> int | None:
        """How many inputs of an output channel share a scale, in grouped integers; `None`: a setting says it."""
        return self.numbers[1] if self.family.name == "grouped integer" else None

    def codes(self, rows: int, columns: int) -> tuple[int, ...]:
        """How many codes a weight of `rows` output channels of `columns` inputs has, in each array of them."""
        return self.family.codes(rows, columns, *find(self.name)[1])

    @property
    def code_bits(self) -> int:
        """Bits of a code: `bits`, but where one code stands for several values."""
        return self.family.code_bits(*find(self.name)[1])

    def parameter_bytes(self, rows: int, columns: int) -> int | None:
        """Bytes of what a weight stores beside its codes; `None`: settings say how many scales there are."""
        return self.family.parameter_bytes(rows, columns, *find(self.name)[1])

    def misfit(self, rows: int, columns: int) -> str | None:
        """Why a weight of `rows` output channels of `columns` inputs cannot have this format; `None`: it can."""
        return self.family.misfit(rows, columns, *find(self.name)[1])

    def check_activation(self) -> None:
        """Raise unless activations can be in this format.

        Raises:
            ValueError: weights only.
        """
        if self.group_size is not None:
            raise ValueError(
                f"{self.name} is a format of weights only: activations take int{self.bits}, without groups"
            )
        if self.family.weights_only:
            raise ValueError(f"{self.name} is a format of weights only: give activations an integer or float format")

    @property
    def short(self) -> str:
        return str(self.bits) if self.is_integer else self.name

    def __str__(self) -> str:
        return self.name


_SHORT = f"({names_of_precisions()})"
_PRECISION = re.compile(f"w{_SHORT}a{_SHORT}")
_PRECISION_KEYS = frozenset({"weight_bits", "activation_bits", "weight_format", "activation_format"})


@dataclass(frozen=True, slots=True, order=True)
class Precision:
    """The formats of one layer: of its weights and of the activations that it reads. Prints as `w4a8`.

    Raises:
        ValueError: a format of weights for the activations.
    """

    weight: Format
    activation: Format

    def __post_init__(self) -> None:
        self.activation.check_activation()

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read `w4a8`, `wternarya8`, `wfp16afp16`, `wint4_g32a8`, ...

        Raises:
            ValueError: not of that form.
        """
        match = _PRECISION.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f"{text!r:.80} is no precision; write weight and activation formats as in w4a8, wternarya8, wfp16afp16"
            )
        weight, activation = (Format.parse(f"int{part}" if part.isdigit() else part) for part in match.groups())
        return cls(weight, activation)

    @classmethod
    def from_doc(cls, doc: Mapping[str, Any]) -> Precision:
        """From `weight_bits`, `activation_bits` and, where not plain integers, `weight_format`, `activation_format`."""

        def read(kind: str) -> Format:
            bits, name = doc.get(f"{kind}_bits"), doc.get(f"{kind}_format")
            if name is None:
                if not isinstance(bits, int) or isinstance(bits, bool):
                    raise ValueError(f"{kind}_bits must be a whole number of bits, got {bits!r}")
                return Format.integer(bits)
            if not isinstance(name, str):
                raise ValueError(f"{kind}_format must be the name of a number format, got {name!r}")
            result = Format.parse(name)
            if bits is not None and bits != result.bits:
                raise ValueError(f"{kind}_bits is {bits!r} but {kind}_format {name!r} has {result.bits} bits")
            return result

        return cls(read("weight"), read("activation"))

    def to_doc(self) -> dict[str, Any]:
        doc: dict[str, Any] = {"weight_bits": self.weight.bits, "activation_bits": self.activation.bits}
        if not self.weight.is_integer:
            doc["weight_format"] = self.weight.name
        if not self.activation.is_integer:
            doc["activation_format"] = self.activation.name
        return doc

    def __str__(self) -> str:
        return f"w{self.weight.short}a{self.activation.short}"
