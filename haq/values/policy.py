"""The bit assignment: layer name -> precision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from haq.values.formats import _PRECISION_KEYS, Precision


@dataclass(frozen=True)
class Policy(Mapping[str, Precision]):
    """A bit-width policy: layer name -> precision, in network order. Equal and hashed by content."""

    precisions: Mapping[str, Precision]

    def __post_init__(self) -> None:
        object.__setattr__(self, "precisions", dict(self.precisions))

    def __getitem__(self, name: str) -> Precision:
        return self.precisions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.precisions)

    def __len__(self) -> int:
        return len(self.precisions)

    def __hash__(self) -> int:
        return hash(self.key)

    @classmethod
    def uniform(cls, layers: Iterable[str], precision: Precision) -> Policy:
        return cls(dict.fromkeys(layers, precision))

    @property
    def key(self) -> str:
        """A stable hash of the content, equal across processes and machines; the order of layers does not matter."""
        text = json.dumps({name: str(precision) for name, precision in self.precisions.items()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_doc(self) -> dict[str, dict[str, Any]]:
        """`{layer: {"weight_bits": 4, "activation_bits": 8}, ...}`."""
        return {name: precision.to_doc() for name, precision in self.precisions.items()}

    @classmethod
    def from_doc(cls, doc: Any) -> Policy:
        """Read what `to_doc` wrote.

        Raises:
            ValueError: no object, or names the layer whose entry is not a precision.
        """
        if not isinstance(doc, Mapping):
            raise ValueError(f"expected an object that maps layer names to bits, got {doc!r:.80}")
        precisions = {}
        for name, entry in doc.items():
            if not isinstance(entry, Mapping):
                raise ValueError(
                    f"layer {name!r}: expected an object with weight_bits and activation_bits, got {entry!r}"
                )
            try:
                if unknown := sorted(set(entry) - _PRECISION_KEYS):
                    raise ValueError(f"unknown key {unknown[0]!r}; known: {', '.join(sorted(_PRECISION_KEYS))}")
                precisions[name] = Precision.from_doc(entry)
            except ValueError as error:
                raise ValueError(f"layer {name!r}: {error}") from error
        return cls(precisions)

    def check_layers(self, layers: Iterable[str]) -> None:
        """Raise unless this policy names exactly `layers`.

        Raises:
            ValueError: lists the missing and the unknown layers.
        """
        expected = set(layers)
        missing, unknown = sorted(expected - set(self)), sorted(set(self) - expected)
        if missing or unknown:
            parts = [
                f"{word} {', '.join(names)}" for word, names in (("missing", missing), ("unknown", unknown)) if names
            ]
            raise ValueError(f"the policy is for another model: {'; '.join(parts)}")
