"""The result of every sensitivity metric: a table of predicted loss increases; and what metrics have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from haq.edges.documents import read_checked, write_checked
from haq.edges.validation import Section, one_line
from haq.quant.model import QuantizedModel
from haq.quant.nested import tensors_in
from haq.values.errors import InputError
from haq.values.formats import Format, Precision

Formats = Mapping[str, tuple[Sequence[Format], Sequence[Format]]]
"""Layer name -> the weight formats and the activation formats to score."""
Loss = Callable[[Any, Any], Tensor]
"""`(outputs, targets)` -> scalar; a mean over the samples of the batch."""
Batches = Iterable[tuple[Any, Any]]
"""`(inputs, targets)` batches."""
Progress = Callable[[int, int], None]
"""Called with the number of steps done and their total."""
Scores = tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]
"""Of weights and of activations: layer -> format name -> predicted loss increase."""

FP32 = Format.parse("fp32")


_Rows = dict[str, dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]]


class _TableDoc(Section):
    schema_version: Literal[1]
    metric: str
    signature: str
    weights: _Rows
    activations: _Rows
    details: dict[str, Any]


class Samples(Protocol):
    """Data in memory, such as a `haq.zoo.Split`."""

    def batches(self, batch_size: int) -> Iterator[tuple[Any, Any]]:
        """Consecutive `(inputs, targets)` batches."""

    def tensors(self) -> list[Tensor]:
        """All tensors."""


class Metric(Protocol):
    """A sensitivity metric: the function `score` of one file of this folder.

    It leaves the model as it found it, scores fp32 and other exact formats 0, and keeps of the data no more than one
    batch's intermediate tensors in memory.
    """

    def __call__(
        self,
        model: QuantizedModel,
        formats: Formats,
        batches: Batches,
        *,
        loss: Loss,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Scores: ...


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
        write_checked(path, {"schema_version": 1, **self.__dict__})

    @classmethod
    def load(cls, path: Path, *, signature: str) -> SensitivityTable:
        """Read a saved table.

        Raises:
            InputError: missing, damaged, or made for another model, data, formats, quantization or metric.
        """
        document = read_checked(path)
        try:
            found = _TableDoc.model_validate(document)
        except ValidationError as error:
            raise InputError(f"{path}: not a sensitivity table: {one_line(error)}; delete it to recompute") from error
        table = cls(found.metric, found.signature, found.weights, found.activations, found.details)
        if table.signature != signature:
            raise InputError(
                f"{path}: made for another model, data, formats, quantization or metric (signature {table.signature}, "
                f"wanted {signature}); remove it or name another file"
            )
        return table


def table_signature(model: QuantizedModel, formats: Formats, samples: Samples, settings: Mapping[str, Any]) -> str:
    """A hash of what a table depends on: float weights and statistics, data, formats, quantization, settings.

    Call it while `model` is in float. Shifted biases and the like would count.
    """
    tensors = [*model.module.state_dict().values(), *samples.tensors()]
    digest = hashlib.sha256()
    for tensor in (*tensors, *tensors_in(model.calibration)):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    text = {
        "formats": {name: [[fmt.name for fmt in sorted(kind)] for kind in pair] for name, pair in formats.items()},
        "quantization": model.quantization.model_dump(mode="json"),
        **settings,
    }
    digest.update(json.dumps(text, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def monotone(scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The scores with what noise put wrong put right: none below 0, and no format above one of fewer bits."""
    result = {}
    for layer, row in scores.items():
        formats = sorted(map(Format.parse, row))
        result[layer] = {
            fmt.name: max(0.0, min(row[other.name] for other in formats if other.bits < fmt.bits or other == fmt))
            for fmt in formats
        }
    return result
