"""Change of the outputs when one layer at a time is quantized; needs no labels."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from haq.quant.classes import known_class_axis
from haq.quant.model import QuantizedModel
from haq.quant.nested import tensors_in
from haq.sensitivity.base import Batches, Formats, Loss, Progress, Scores
from haq.sensitivity.one_at_a_time import score_one_at_a_time
from haq.sensitivity.outputs import are_logits, are_probabilities


def score(
    model: QuantizedModel,
    formats: Formats,
    batches: Batches,
    *,
    loss: Loss,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """KL(float outputs || outputs with one layer quantized), the mean over samples, where outputs are logits.

    Other outputs (targets that are no classes, several tensors): squared error over squared float outputs, the
    mean over tensors and batches. Forward passes only, one per batch, layer and format.
    """
    return score_one_at_a_time(model, formats, batches, compare=divergence, progress=progress)


def divergence(reference: Any, outputs: Any, targets: Any) -> float:
    """How far `outputs` are from `reference`: KL divergence of logits, else normalised squared error."""
    if are_logits(outputs, targets) or are_probabilities(outputs, targets):
        axis = known_class_axis(outputs, targets)
        assert axis is not None
        return _kl(reference.movedim(axis, 1), outputs.movedim(axis, 1))
    pairs = zip(tensors_in(reference), tensors_in(outputs), strict=True)
    errors = [_normalised_error(wanted, got) for wanted, got in pairs if wanted.is_floating_point()]
    return sum(errors) / max(1, len(errors))


def _kl(reference: Tensor, outputs: Tensor) -> float:
    expected, got = reference.double().log_softmax(1), outputs.double().log_softmax(1)
    return float(F.kl_div(got, expected, log_target=True, reduction="none").sum(1).mean())


def _normalised_error(wanted: Tensor, got: Tensor) -> float:
    power = float(wanted.square().sum())
    return float((got - wanted).square().sum()) / power if power else 0.0
