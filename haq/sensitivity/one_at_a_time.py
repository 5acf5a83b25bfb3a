"""Forward passes with a single layer in a single format, all others in float: shared by `loss` and `kl`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from haq.quant.model import QuantizedModel
from haq.sensitivity.base import FP32, Batches, Formats, Progress, Scores
from haq.sensitivity.local import Totals, float_model, steps
from haq.values.formats import Precision


def score_one_at_a_time(
    model: QuantizedModel,
    formats: Formats,
    batches: Batches,
    *,
    compare: Callable[[Any, Any, Any], float],
    progress: Progress | None,
) -> Scores:
    """Mean over samples of `compare(float outputs, quantized outputs, targets)`, itself a mean over a batch.

    One forward pass per batch, layer and format, and one in float.
    """
    totals, samples = Totals(formats), 0
    passes = [
        (kind, layer, fmt, precision)
        for layer, (weights, activations) in formats.items()
        for kind, fmt, precision in (
            *(("weights", fmt, Precision(fmt, FP32)) for fmt in weights),
            *(("activations", fmt, Precision(FP32, fmt)) for fmt in activations),
        )
    ]
    with float_model(model), torch.no_grad():
        for batch in steps(model, batches, progress):
            reference = model(batch.inputs)
            for kind, layer, fmt, precision in passes:
                model.set_precision(layer, precision)
                worse = compare(reference, model(batch.inputs), batch.targets)
                totals.add(kind, layer, fmt.name, batch.count * worse)
                model.set_precision(layer, None)
            samples += batch.count
    return totals.scores(1 / samples)
