"""What a request says: plain numbers of the shape that the model wants, or one line that says what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from haq.values.errors import InputError, shortened

SIGNALS = ("battery", "temperature", "deadline_ms")
"""What a request may tell a controller; `queue` and `time` the service knows by itself."""
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        inputs: name of a model's input -> a batch, samples first.
        samples: in that batch.
        signals: name -> value, as sent.
    """

    inputs: dict[str, Tensor]
    samples: int
    signals: dict[str, float]


def read_request(body: bytes, wanted: Sequence[tuple[str, Sequence[Any], str]], *, most: int) -> Asked:
    """Check and convert the body of `POST /predict`.

    Args:
        body: a JSON object: `inputs` (nested lists of one batch; of a model with several inputs an object of these by
            name) and, where the controller wants any, `signals`.
        wanted: name, shape and ONNX type of each input, see `OnnxFamily.inputs`.
        most: samples in one request.

    Raises:
        InputError: says what is wrong and what is wanted.
    """
    document = _parsed(body)
    unknown = sorted(set(document) - {"inputs", "signals"})
    if unknown:
        raise InputError(f"unknown key {unknown[0]!r:.80}; known: inputs, signals")
    if "inputs" not in document:
        raise InputError("inputs: missing; send nested lists of one batch")
    given = document["inputs"]
    if len(wanted) == 1 and not isinstance(given, dict):
        given = {wanted[0][0]: given}
    names = [name for name, _, _ in wanted]
    if not isinstance(given, dict) or sorted(given) != sorted(names):
        raise InputError(f"inputs: expected an object with {', '.join(names)}, each nested lists of one batch")
    arrays = {name: _array(name, given[name], shape, kind) for name, shape, kind in wanted}
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        raise InputError(f"inputs: batches of different lengths: {sorted(counts)}")
    (samples,) = counts
    if not 1 <= samples <= most:
        raise InputError(f"inputs: a batch of {samples}; expected 1 to {most} samples")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Asked(tensors, samples, _signals(document.get("signals", {})))


def _parsed(body: bytes) -> Mapping[str, Any]:
    def refuse(constant: str) -> Any:
        raise InputError(f"{constant} is no number in JSON; send finite numbers")

    try:
        document = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON: {shortened(str(error))}") from error
    if not isinstance(document, dict):
        raise InputError('the body must be a JSON object: {"inputs": [...]}')
    return document


def _array(name: str, value: Any, shape: Sequence[Any], kind: str) -> np.ndarray:
    wanted = _TYPES.get(kind)
    if wanted is None:
        raise InputError(f"input {name}: has ONNX type {kind}, which this service does not take")
    try:
        raw = np.array(value)
    except (ValueError, OverflowError) as error:
        raise InputError(f"input {name}: ragged lists; expected shape {_shown(shape)}") from error
    if raw.dtype.kind not in ("b" if wanted is np.bool_ else "if"):
        raise InputError(f"input {name}: expected nested lists of numbers of shape {_shown(shape)}")
    fits = raw.ndim == len(shape) and all(
        got == want for got, want in zip(raw.shape, shape, strict=True) if isinstance(want, int)
    )
    if not fits:
        raise InputError(f"input {name}: has shape {list(raw.shape)}; expected {_shown(shape)}")
    if raw.dtype.kind == "f" and np.issubdtype(wanted, np.integer):
        raise InputError(f"input {name}: expected integers")
    limits = np.iinfo(wanted) if np.issubdtype(wanted, np.integer) else None
    if limits is not None and raw.size and (raw.min() < limits.min or raw.max() > limits.max):
        raise InputError(f"input {name}: integers outside {limits.min} to {limits.max}")
    with np.errstate(over="ignore"):
        array: np.ndarray = raw.astype(wanted)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"input {name}: has values that are not finite numbers of {array.dtype}")
    return array


def _shown(shape: Sequence[Any]) -> str:
    sizes = [str(size) if isinstance(size, int) else ("N" if place == 0 else "any") for place, size in enumerate(shape)]
    return f"[{', '.join(sizes)}]"


def _signals(given: Any) -> dict[str, float]:
    if not isinstance(given, dict):
        raise InputError(f"signals: expected an object of numbers; known: {', '.join(SIGNALS)}")
    for name, value in given.items():
        if name not in SIGNALS:
            raise InputError(f"signals: {name!r:.80}: unknown; known: {', '.join(SIGNALS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"signals: {name} = {value!r:.80}: expected a finite number")
    return {name: float(value) for name, value in given.items()}
