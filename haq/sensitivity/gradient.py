"""Squared first-order effect of a layer's output error on the loss, element by element."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from haq.quant.model import QuantizedModel
from haq.sensitivity.base import Batches, Formats, Loss, Progress, Scores
from haq.sensitivity.local import Batch, LayerCall, Totals, backward_once, float_model, output_errors, steps


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
    with float_model(model):
        for batch in steps(model, batches, progress):
            _add_batch(totals, model, formats, batch, loss)
            samples += batch.count
    return totals.scores(1 / samples)


def _add_batch(totals: Totals, model: QuantizedModel, formats: Formats, batch: Batch, loss: Loss) -> None:
    def objective(outputs: Any) -> Tensor:
        return loss(outputs, batch.targets)

    def add(call: LayerCall, gradient: Tensor) -> None:
        for found in output_errors(model, call, formats):
            effect = found.error.mul_(gradient).float()
            # The mean loss of n samples holds 1/n of each sample's gradient.
            totals.add(found.kind, found.layer, found.fmt, batch.count**2 * float(effect.square_().sum()))

    backward_once(model, batch.inputs, objective, add)
