"""The result of every sensitivity metric: a table of predicted loss increases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haq.config import read_json
from haq.errors import InputError
from haq.files import write_json
from haq.types import Format, Precision

Formats = Mapping[str, tuple[Format, ...]]
"""Layer name -> the formats to score."""


@dataclass(frozen=True)
class SensitivityTable:
    """How much each layer's formats are predicted to raise the loss, weights and activations apart.

    Attributes:
        metric: name of the sensitivity metric.
        signature: hash of model, data, formats, quantization and metric; a table is reused only where it agrees.
        weights: layer -> format name -> predicted increase.
        activations: likewise, for the format of the layer's input.
        details: seconds, samples, ...
    """

    metric: str
    signature: str
    weights: Mapping[str, Mapping[str, float]]
    activations: Mapping[str, Mapping[str, float]]
    details: Mapping[str, Any]

    def of(self, layer: str, precision: Precision) -> float:
        """The predicted loss increase of one layer at `precision`: weights plus activations."""
        return self.weights[layer][precision.weight.name] + self.activations[layer][precision.activation.name]

    def rows(self) -> list[dict[str, Any]]:
        """`layer, kind, format, sensitivity` rows, as `sensitivity.csv` holds them."""
        return [
            {"layer": layer, "kind": kind, "format": name, "sensitivity": value}
            for kind, table in (("weight", self.weights), ("activation", self.activations))
            for layer, formats in table.items()
            for name, value in formats.items()
        ]

    def save(self, path: Path) -> None:
        """Write the table as JSON, atomically."""
        write_json(path, {"schema_version": 1, **self.__dict__})

    @classmethod
    def load(cls, path: Path, *, signature: str) -> SensitivityTable:
        """Read a saved table.

        Raises:
            InputError: missing, damaged, or made for another model, data, formats, quantization or metric.
        """
        document = read_json(path)
        try:
            table = cls(**{key: value for key, value in document.items() if key != "schema_version"})
        except (TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a sensitivity table; remove it to have it made anew") from error
        if table.signature != signature:
            raise InputError(
                f"{path}: made for another model, data, formats, quantization or metric (signature {table.signature}, "
                f"wanted {signature}); remove it or name another file"
            )
        return table
