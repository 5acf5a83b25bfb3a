"""Does an exported model compute what the quantized model computes?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from haq.quant.classes import known_class_axis
from haq.quant.nested import joined, map_tensors, tensors_in
from haq.values.errors import InputError

Kind = Literal["classes", "values"]
TOLERANCE = 0.02
"""Default of `Comparison.passed`: what ties that two orders of summation round apart may do."""
LOOSE_TOLERANCE = 0.1
"""Where the file is known to differ a little: values in 8 bits that the quantized model keeps in float."""
_BATCH_SIZES = (1, 3)
"""Of the batches that are run besides those compared: a file must hold for every batch size."""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same samples.

    Attributes:
        samples: how many.
        kind: `classes`: outputs are scores of classes, and what counts is the largest. `values`: anything else.
        agreement: of classes, the share of positions (samples, pixels, tokens) with the same class, in per cent.
        score: of the quantized torch model.
        exported_score: of the exported model.
        largest_difference: between outputs, absolute.
        largest_output: of the quantized torch model, absolute.
        relative_error: norm of the difference of all outputs over the norm of the quantized torch model's.
        cosine: mean over samples of the cosine between both models' outputs of a sample.
        batch_errors: batch size -> relative error of a batch of that size.
    """

    samples: int
    kind: Kind
    agreement: float | None
    score: float
    exported_score: float
    largest_difference: float
    largest_output: float
    relative_error: float
    cosine: float
    batch_errors: dict[int, float]

    def failures(self, tolerance: float) -> tuple[str, ...]:
        """What is beyond `tolerance`, in words; empty where the models agree.

        The relative error of the outputs, also at other batch sizes, and the share of positions with another class,
        may each be at most `tolerance`.
        """
        found = []
        if not self.relative_error <= tolerance:
            found.append(f"outputs differ by {100 * self.relative_error:.3g} % of their norm")
        if self.agreement is not None and not 100.0 - self.agreement <= 100.0 * tolerance:
            found.append(f"{100.0 - self.agreement:.2f} % of the positions have another class")
        for size, error in self.batch_errors.items():
            if self.relative_error <= tolerance and not error <= tolerance:
                found.append(f"batches of {size} differ by {100 * error:.3g} % of their norm")
        return tuple(found)

    def to_doc(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    reference: Callable[[Any], Any],
    exported: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Any]],
    *,
    metric: Callable[[Any, Any], float],
    kind: Kind = "classes",
    class_axis: int | None = None,
) -> Comparison:
    """Run both over `batches` of inputs and targets.

    The metric is called once, with the outputs of all batches joined; where they cannot be joined (batches of unlike
    shapes) it is the mean of the batches', by samples.

    Args:
        reference: the quantized model.
        exported: the file.
        batches: of inputs and targets.
        metric: of outputs and targets.
        kind: what the first output is; without a dimension of classes it is compared as values.
        class_axis: dimension of the first output that holds the classes; default: where the targets say it;
            where they do not, outputs are compared as values.
    """
    seen: list[tuple[int, Any, Any, Any]] = []
    sums = _Sums()
    first: Any = None
    for inputs, targets in batches:
        first = inputs if first is None else first
        wanted, got, pairs = _run(reference, exported, inputs)
        seen.append((len(pairs[0][0]), wanted, got, targets))
        sums.add(pairs, known_class_axis(pairs[0][0], targets, given=class_axis) if kind == "classes" else None)
    batch_errors = {} if first is None else _other_sizes(reference, exported, first)
    classes = sums.positions > 0
    return Comparison(
        samples=sum(count for count, *_ in seen),
        kind="classes" if classes else "values",
        agreement=100.0 * sums.same / sums.positions if classes else None,
        largest_difference=sums.difference,
        largest_output=sums.size,
        relative_error=sums.relative_error,
        cosine=sums.cosine,
        batch_errors=batch_errors,
        **dict(zip(("score", "exported_score"), _scores(seen, metric), strict=True)),
    )


class _Sums:
    """What is added up over batches."""

    def __init__(self) -> None:
        self.same = self.positions = 0
        self.difference = self.size = 0.0
        self._squares = self._differences = 0.0
        self._cosines: list[Tensor] = []

    def add(self, pairs: list[tuple[Tensor, Tensor]], axis: int | None) -> None:
        """Outputs of both models on one batch; `axis` holds the classes of the first."""
        for wanted, got in ((a.double(), b.double()) for a, b in pairs):
            self.difference = max(self.difference, float((wanted - got).abs().max()))
            self.size = max(self.size, float(wanted.abs().max()))
            self._squares += float(wanted.square().sum())
            self._differences += float((wanted - got).square().sum())
        wanted, got = (
            tensor.double().flatten(1) if tensor.dim() > 1 else tensor.double()[:, None] for tensor in pairs[0]
        )
        self._cosines.append(torch.nn.functional.cosine_similarity(wanted, got, dim=1))
        if axis is not None:
            hits = pairs[0][0].argmax(axis) == pairs[0][1].argmax(axis)
            self.same, self.positions = self.same + int(hits.sum()), self.positions + hits.numel()

    @property
    def relative_error(self) -> float:
        return _relative(self._differences, self._squares)

    @property
    def cosine(self) -> float:
        return float(torch.cat(self._cosines).mean()) if self._cosines else math.nan


def _relative(differences: float, squares: float) -> float:
    if squares == 0.0:
        return 0.0 if differences == 0.0 else math.inf
    return math.sqrt(differences / squares)


def _run(
    reference: Callable[[Any], Any], exported: Callable[[Any], Any], inputs: Any
) -> tuple[Any, Any, list[tuple[Tensor, Tensor]]]:
    """Outputs of both, the file's structured as the model's, and their tensors in pairs."""
    with torch.no_grad():
        wanted, got = reference(inputs), exported(inputs)
    tensors = list(tensors_in(got))
    pairs = list(zip(tensors_in(wanted), tensors, strict=True))
    values = iter(tensors)
    return wanted, map_tensors(lambda _: next(values), wanted), pairs


def _other_sizes(reference: Callable[[Any], Any], exported: Callable[[Any], Any], inputs: Any) -> dict[int, float]:
    found = {}
    count = len(next(iter(tensors_in(inputs))))
    for size in _BATCH_SIZES:
        if size > count:
            continue
        part = map_tensors(lambda tensor, size=size: tensor[:size], inputs)  # type: ignore[misc]
        sums = _Sums()
        sums.add(_run(reference, exported, part)[2], None)
        found[size] = sums.relative_error
    return found


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
