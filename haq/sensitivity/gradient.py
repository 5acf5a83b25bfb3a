"""Squared first-order effect of a layer's output error on the loss, element by element."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from haq.quant.model import QuantizedModel
from haq.sensitivity.base import Batches, Formats, Loss, Progress, Scores
from haq.sensitivity.local import Totals, float_model, score_errors, steps


def score(
    model: QuantizedModel,
    formats: Formats,
    batches: Batches,
    *,
    loss: Loss,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Mean over samples of sum over elements of (dL/dY * (Y_q - Y))^2, at each layer's output Y.

    The score of NVIDIA Model Optimizer's `auto_quantize`: one backward pass of the loss at the true targets serves all
    layers, each format is replayed on the layer's own float input. It adds up output elements as if their errors were
    independent; `fisher` does not.
    """
    totals, samples = Totals(formats), 0

    def add(count: int, kind: str, layer: str, fmt: str, output: Tensor, error: Tensor, gradient: Tensor) -> None:
        # The mean loss of n samples holds 1/n of each sample's gradient.
        totals.add(kind, layer, fmt, count**2 * float((error * gradient).float().square().sum()))

    def objective(targets: Any, outputs: Any) -> Tensor:
        return loss(outputs, targets)

    with float_model(model):
        for inputs, targets, count in steps(model, batches, progress):
            score_errors(model, formats, inputs, partial(objective, targets), partial(add, count))
            samples += count
    return totals.scores(1 / samples)
