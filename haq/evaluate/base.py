"""What an evaluator is, and the metrics and losses it can be asked for by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from typing import Any, Protocol

from haq.evaluate.functions import (
    accuracy,
    agreement,
    cosine,
    cross_entropy,
    kl_divergence,
    mean_iou,
    mse,
    negative_kl,
    negative_mse,
    negative_perplexity,
    sqnr,
    token_accuracy,
)
from haq.quant.nested import Loss
from haq.values.policy import Policy
from haq.values.trial import Measurement

Metric = Callable[[Any, Any], float]
"""`(outputs, targets)` of a whole split, joined from its batches -> score, larger is better."""


class Evaluator(Protocol):
    """Measures what a policy is worth. The same policy measures the same."""

    def __call__(self, policy: Policy) -> Measurement:
        """Score `policy`; a failure that belongs to the policy is in `Measurement.error`, not raised."""


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "agreement": agreement,
    "cosine": cosine,
    "mean_iou": mean_iou,
    "negative_kl": negative_kl,
    "negative_mse": negative_mse,
    "negative_perplexity": negative_perplexity,
    "sqnr": sqnr,
    "token_accuracy": token_accuracy,
}
LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "kl_divergence": kl_divergence, "mse": mse}
UNITS: Mapping[str, str] = {
    "accuracy": "%",
    "agreement": "%",
    "mean_iou": "%",
    "token_accuracy": "%",
}
"""Units of the metrics' scores; the others have none that the name does not say."""


def with_class_axis(function: Callable[[Any, Any], Any], axis: int | None) -> Callable[[Any, Any], Any]:
    """One of the functions above with its classes in dimension `axis`; unchanged where that is `None` or not used."""
    if axis is None or "class_axis" not in signature(function).parameters:
        return function

    @wraps(function)
    def bound(outputs: Any, targets: Any) -> Any:
        return function(outputs, targets, class_axis=axis)  # type: ignore[call-arg]

    # What is kept on disk is kept under this name.
    bound.__qualname__ = f"{function.__name__}(class_axis={axis})"
    return bound
