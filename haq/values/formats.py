"""The plain values that every part of `haq` shares: frozen, free of torch, JSON both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FLOAT_BITS = {"fp16": 16, "bf16": 16, "fp32": 32}
_LOW_BITS = {"ternary": 2, "binary": 1}
_INT = re.compile(r"int([1-9]|[12][0-9]|3[0-2])")
_GROUPED = re.compile(r"int([2-8])_g([2-9]|[1-9][0-9]{1,4})")


@dataclass(frozen=True, slots=True, order=True)
class Format:
    """A number format. Build it with `Format.parse`, which knows every name.

    Attributes:
        bits: storage bits per value (ternary: 2, binary: 1).
        name: `int1` ... `int32`, `ternary`, `binary`, `fp16`, `bf16`, `fp32`, or for weights `int4_g32` and the like:
            4-bit integers with a scale for each group of 32 inputs of an output channel.
    """

    bits: int
    name: str

    @classmethod
    def parse(cls, name: str) -> Format:
        """The format called `name`.

        Raises:
            ValueError: unknown name; the message lists the known ones.
        """
        if name in _FLOAT_BITS:
            return cls(_FLOAT_BITS[name], name)
        if name in _LOW_BITS:
            return cls(_LOW_BITS[name], name)
        match = _INT.fullmatch(name) or _GROUPED.fullmatch(name)
        if match is None:
            raise ValueError(
                f"unknown number format {name!r}; known: int1 to int32, {', '.join([*_LOW_BITS, *_FLOAT_BITS])}, and "
                "for weights int2 to int8 in groups of 2 to 99999, as in int4_g32"
            )
        return cls(int(match[1]), name)

    @classmethod
    def integer(cls, bits: int) -> Format:
        """The plain integer format of `bits` bits."""
        return cls.parse(f"int{bits}")

    @property
    def is_float(self) -> bool:
        return self.name in _FLOAT_BITS

    @property
    def is_integer(self) -> bool:
        """Whether the name says no more than the bits: a plain integer, written as `4` in `w4a8`."""
        return self.name == f"int{self.bits}"

    @property
    def group_size(self) -> int | None:
        """How many inputs of an output channel share a scale, where the format says that; `None`: a setting does."""
        _, grouped, size = self.name.partition("_g")
        return int(size) if grouped else None

    def check_activation(self) -> None:
        """Raise unless activations can be in this format.

        Raises:
            ValueError: its scales are per group of a weight's inputs.
        """
        if self.group_size is not None:
            raise ValueError(
                f"{self.name} is a format of weights only: activations take int{self.bits}, without groups"
            )

    @property
    def short(self) -> str:
        return str(self.bits) if self.is_integer else self.name

    def __str__(self) -> str:
        return self.name


_SHORT = r"(\d+|int\d+_g\d+|ternary|binary|fp16|bf16|fp32)"
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
