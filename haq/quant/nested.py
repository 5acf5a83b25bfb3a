"""Inputs, targets and outputs: a tensor, or tuples, lists and dicts of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from haq.modules import plain_paths
from haq.values.errors import InputError


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in `value`, in order; whatever else is in there is passed over."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from tensors_in(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from tensors_in(entry)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with each tensor replaced by `function(tensor)`."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, entry) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, entry) for entry in value))
    if isinstance(value, tuple | list):
        return tuple(map_tensors(function, entry) for entry in value)
    return value


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call with a tensor, with a tuple or list as positional, or with a dict as keyword arguments.

    Of an output of Hugging Face's models, the scores: see `scores_of`.
    """
    with plain_paths():
        if isinstance(inputs, Mapping):
            return scores_of(model(**inputs))
        if isinstance(inputs, tuple | list):
            return scores_of(model(*inputs))
        return scores_of(model(inputs))


def scores_of(outputs: Any) -> Any:
    """Of a `transformers.ModelOutput` its `logits`, or without these its first tensor; all else as it is."""
    if not (isinstance(outputs, Mapping) and hasattr(outputs, "to_tuple")):
        return outputs
    if isinstance(outputs.get("logits"), Tensor):
        return outputs["logits"]
    return next(tensors_in(outputs), outputs)


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA where there is one. With its index, to compare by.

    Raises:
        InputError: torch cannot use it here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter: a torch without CUDA
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"device {name!r}: torch {torch.__version__} cannot use it here: {reason}; use 'cpu'"
        ) from error


def to_device(value: Any, device: torch.device) -> Any:
    """`value`, its tensors on `device`; to a GPU by way of pinned memory, so that nothing waits for the copy."""

    def place(tensor: Tensor) -> Tensor:
        if device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    return map_tensors(place, value)


class Batches(Protocol):
    """What an evaluator needs of a split."""

    def head(self, count: int) -> Batches: ...
    def batches(self, batch_size: int) -> Iterator[tuple[Any, Any]]: ...


def joined(parts: list[Any]) -> Any:
    """One value from the batches': tensors along the first dimension, tuples and dicts entry by entry."""
    first = parts[0]
    if isinstance(first, Tensor):
        try:
            return torch.stack(parts) if first.dim() == 0 else torch.cat(parts)
        except RuntimeError as error:
            shapes = sorted({tuple(part.shape) for part in parts})
            raise InputError(
                f"outputs of different batches cannot be joined, their shapes are {shapes}; return tensors that differ "
                "in the first dimension only, or set the batch size to the number of samples"
            ) from error
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(joined(list(column)) for column in zip(*parts, strict=True)))
    if isinstance(first, tuple | list):
        return tuple(joined(list(column)) for column in zip(*parts, strict=True))
    return parts


Loss = Callable[[Any, Any], Tensor]
"""`(outputs, targets)` -> scalar tensor, smaller is better."""
