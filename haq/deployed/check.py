"""Does an exported model compute what the quantized model computes?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from haq.quant.nested import joined, map_tensors, tensors_in
from haq.values.errors import InputError


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
    """Run both over `batches` of inputs and targets.

    The metric is called once, with the outputs of all batches joined; where they cannot be joined (batches of unlike
    shapes) it is the mean of the batches', by samples.
    """
    samples, same, counted = 0, 0, 0
    seen: list[tuple[int, Any, Any, Any]] = []
    difference = size = 0.0
    for inputs, targets in batches:
        with torch.no_grad():
            wanted, got = reference(inputs), exported(inputs)
        tensors = list(tensors_in(got))
        pairs = list(zip(tensors_in(wanted), tensors, strict=True))
        values = iter(tensors)
        got = map_tensors(lambda _, values=values: next(values), wanted)  # type: ignore[misc]
        seen.append((len(pairs[0][0]), wanted, got, targets))
        samples += len(pairs[0][0])
        difference = max(difference, *(float((a - b).abs().max()) for a, b in pairs))
        size = max(size, *(float(a.abs().max()) for a, _ in pairs))
        hits = _same_class(*pairs[0])
        same, counted = same + int(hits.sum()), counted + hits.numel()
    agreement = 100.0 * same / counted if counted else None
    return Comparison(samples, agreement, *_scores(seen, metric), difference, size)


def _scores(seen: list[tuple[int, Any, Any, Any]], metric: Callable[[Any, Any], float]) -> tuple[float, float]:
    counts, *columns = (list(column) for column in zip(*seen, strict=True))
    try:
        wanted, got, targets = map(joined, columns)
    except (InputError, RuntimeError):
        return _mean(metric, counts, columns[0], columns[2]), _mean(metric, counts, columns[1], columns[2])
    return metric(wanted, targets), metric(got, targets)


def _mean(metric: Callable[[Any, Any], float], counts: list[int], outputs: list[Any], targets: list[Any]) -> float:
    parts = zip(counts, outputs, targets, strict=True)
    return sum(count * metric(got, wanted) for count, got, wanted in parts) / sum(counts)


def _same_class(wanted: Tensor, got: Tensor) -> Tensor:
    if wanted.dim() < 2 or not wanted.is_floating_point():
        return torch.zeros(0)
    return wanted.argmax(1) == got.argmax(1)
