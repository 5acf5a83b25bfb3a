"""Noise-to-signal ratio at each layer's output."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from haq.quant.model import QuantizedModel
from haq.sensitivity.base import Batches, Formats, Loss, Progress, Scores
from haq.sensitivity.local import LayerCall, Totals, float_model, on_each_call, output_errors, steps


def score(
    model: QuantizedModel,
    formats: Formats,
    batches: Batches,
    *,
    loss: Loss,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Sum of (Y_q - Y)^2 over sum of Y^2 at each layer's output Y: 10^(-SQNR / 10), with the SQNR in decibel.

    The layer reads its float input; sums run over all samples, calls and elements. Needs no gradient and no loss, and
    knows nothing of what the layer means to the network: noise of equal share counts the same everywhere.
    """
    noise = Totals(formats)
    signal: dict[str, float] = defaultdict(float)

    def visit(call: LayerCall, output: Tensor) -> None:
        signal[call.layer] += float(output.float().square().sum())
        for found in output_errors(model, call, formats):
            noise.add(found.kind, found.layer, found.fmt, float(found.error.float().square_().sum()))

    with float_model(model), torch.no_grad(), on_each_call(model, visit):
        for batch in steps(model, batches, progress):
            model(batch.inputs)
    return noise.scores({layer: 1 / signal[layer] if signal[layer] else 0.0 for layer in formats})
