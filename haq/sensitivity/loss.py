"""Loss increase of one layer at a time."""

from __future__ import annotations

from typing import Any

from haq.quant.model import QuantizedModel
from haq.sensitivity.base import Batches, Formats, Loss, Progress, Scores
from haq.sensitivity.one_at_a_time import score_one_at_a_time


def score(
    model: QuantizedModel,
    formats: Formats,
    batches: Batches,
    *,
    loss: Loss,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """L(one layer's weights or input in the format, all else float) - L(float), the mean loss over all samples.

    Exact for a single layer; forward passes only, one per batch, layer and format.
    """

    def increase(reference: Any, outputs: Any, targets: Any) -> float:
        return float(loss(outputs, targets)) - float(loss(reference, targets))

    return score_one_at_a_time(model, formats, batches, compare=increase, progress=progress)
