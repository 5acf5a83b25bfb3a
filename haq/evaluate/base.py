"""What an evaluator is, and the metrics and losses it can be asked for by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from haq.quant.nested import Loss
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Measurement

Metric = Callable[[Any, Any], float]
"""`(outputs, targets)` of a whole split, joined from its batches -> score, larger is better."""


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


def agreement(outputs: Any, targets: Any) -> float:
    """Share of samples, in per cent, whose largest output is where the float model's is (`data.targets`)."""
    logits, wanted = _against_float(outputs, targets, "agreement")
    return 100.0 * float((logits.argmax(1) == wanted.argmax(1)).double().mean())


def negative_kl(outputs: Any, targets: Any) -> float:
    """Minus `kl_divergence`, so that larger is better."""
    return -float(kl_divergence(outputs, targets))


def negative_mse(outputs: Any, targets: Any) -> float:
    """Minus the mean squared error, so that larger is better."""
    return -float(mse(outputs, targets))


def cross_entropy(outputs: Any, targets: Any) -> Tensor:
    """Mean cross entropy of logits `[n, classes, ...]` and class indices `[n, ...]` or class probabilities."""
    return F.cross_entropy(
        _only_tensor(outputs, "outputs", "cross_entropy"), _only_tensor(targets, "targets", "cross_entropy")
    )


def kl_divergence(outputs: Any, targets: Any) -> Tensor:
    """Mean KL(targets || softmax of the outputs), in nats, of the float model's probabilities (`data.targets`)."""
    logits, wanted = _against_float(outputs, targets, "kl_divergence")
    positions = logits.numel() / logits.shape[1]
    return F.kl_div(logits.log_softmax(1), wanted.to(logits.dtype), reduction="sum") / positions


def _against_float(outputs: Any, targets: Any, name: str) -> tuple[Tensor, Tensor]:
    logits, wanted = _only_tensor(outputs, "outputs", name), _only_tensor(targets, "targets", name)
    if logits.shape != wanted.shape or logits.dim() < 2:
        raise InputError(
            f"{name} compares with the float model, and targets are {tuple(wanted.shape)} for outputs "
            f"{tuple(logits.shape)}; set data.targets = 'float_model'"
        )
    return logits, wanted


def mse(outputs: Any, targets: Any) -> Tensor:
    """Mean squared error of two tensors of one shape."""
    got, wanted = _only_tensor(outputs, "outputs", "mse"), _only_tensor(targets, "targets", "mse")
    if got.shape != wanted.shape:
        raise InputError(
            f"mse needs outputs and targets of one shape, got {tuple(got.shape)} and {tuple(wanted.shape)}"
        )
    return F.mse_loss(got, wanted.to(got.dtype))


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "agreement": agreement,
    "negative_kl": negative_kl,
    "negative_mse": negative_mse,
}
LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "kl_divergence": kl_divergence, "mse": mse}
