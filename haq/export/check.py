"""Does an exported model compute what the quantized model computes?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from haq.quant.tree import map_tensors, tensors_in


@dataclass(frozen=True)
class Comparison:
    """Two models on the same samples.

    Attributes:
        samples: how many.
        agreement: share of samples with the same largest output along dimension 1, in per cent; `None` where the first
            output has no such dimension.
        score: of the quantized torch model.
        exported_score: of the exported model.
        largest_difference: between outputs, absolute.
        largest_output: of the quantized torch model, absolute.
    """

    samples: int
    agreement: float | None
    score: float
    exported_score: float
    largest_difference: float
    largest_output: float

    def to_doc(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    reference: Callable[[Any], Any],
    exported: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Any]],
    *,
    metric: Callable[[Any, Any], float],
) -> Comparison:
    """Run both over `batches` of inputs and targets; the score is the mean of the batches' metric, by samples."""
    samples, same, counted = 0, 0, 0
    scores = [0.0, 0.0]
    difference = size = 0.0
    for inputs, targets in batches:
        with torch.no_grad():
            wanted, got = reference(inputs), exported(inputs)
        tensors = list(tensors_in(got))
        pairs = list(zip(tensors_in(wanted), tensors, strict=True))
        count = len(pairs[0][0])
        samples += count
        values = iter(tensors)
        got = map_tensors(lambda _, values=values: next(values), wanted)  # type: ignore[misc]
        for index, outputs in enumerate((wanted, got)):
            scores[index] += count * metric(outputs, targets)
        difference = max(difference, *(float((a - b).abs().max()) for a, b in pairs))
        size = max(size, *(float(a.abs().max()) for a, _ in pairs))
        hits = _same_class(*pairs[0])
        same, counted = same + int(hits.sum()), counted + hits.numel()
    agreement = 100.0 * same / counted if counted else None
    return Comparison(samples, agreement, scores[0] / samples, scores[1] / samples, difference, size)


def _same_class(wanted: Tensor, got: Tensor) -> Tensor:
    if wanted.dim() < 2 or not wanted.is_floating_point():
        return torch.zeros(0)
    return wanted.argmax(1) == got.argmax(1)
