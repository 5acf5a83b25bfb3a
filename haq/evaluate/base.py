"""What an evaluator is, and the metrics and losses it can be asked for by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from haq.errors import InputError
from haq.types import Measurement, Policy

Metric = Callable[[Any, Any], float]
"""`(outputs, targets)` of a whole split, joined from its batches -> score, larger is better."""
Loss = Callable[[Any, Any], Tensor]
"""`(outputs, targets)` -> scalar tensor, smaller is better."""


class Evaluator(Protocol):
    """Measures what a policy is worth. The same policy measures the same."""

    def __call__(self, policy: Policy) -> Measurement:
        """Score `policy`; a failure that belongs to the policy is in `Measurement.error`, not raised."""


def _only_tensor(value: Any, what: str, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise InputError(
            f"{name} needs {what} that are one tensor, got {type(value).__name__}; name your own module:function"
        )
    return value


def accuracy(outputs: Any, targets: Any) -> float:
    """Share of correct classes in per cent: logits `[n, classes, ...]` against class indices `[n, ...]`."""
    logits, classes = _only_tensor(outputs, "outputs", "accuracy"), _only_tensor(targets, "targets", "accuracy")
    if logits.dim() != classes.dim() + 1:
        raise InputError(
            f"accuracy needs logits [n, classes, ...] and class indices [n, ...], got {tuple(logits.shape)} and "
            f"{tuple(classes.shape)}; name your own module:function"
        )
    return 100.0 * float((logits.argmax(1) == classes).double().mean())


def negative_mse(outputs: Any, targets: Any) -> float:
    """Minus the mean squared error, so that larger is better."""
    return -float(mse(outputs, targets))


def cross_entropy(outputs: Any, targets: Any) -> Tensor:
    """Mean cross entropy of logits `[n, classes, ...]` and class indices `[n, ...]` or class probabilities."""
    return F.cross_entropy(
        _only_tensor(outputs, "outputs", "cross_entropy"), _only_tensor(targets, "targets", "cross_entropy")
    )


def mse(outputs: Any, targets: Any) -> Tensor:
    """Mean squared error of two tensors of one shape."""
    got, wanted = _only_tensor(outputs, "outputs", "mse"), _only_tensor(targets, "targets", "mse")
    if got.shape != wanted.shape:
        raise InputError(
            f"mse needs outputs and targets of one shape, got {tuple(got.shape)} and {tuple(wanted.shape)}"
        )
    return F.mse_loss(got, wanted.to(got.dtype))


METRICS: dict[str, Metric] = {"accuracy": accuracy, "negative_mse": negative_mse}
LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse}
