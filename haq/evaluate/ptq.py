"""The post-training evaluator: apply a policy, run the data, score."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from haq.errors import InputError
from haq.evaluate.base import LOSSES, METRICS, Loss, Metric, accuracy
from haq.evaluate.jackknife import jackknife
from haq.quant import QuantizedModel, correct_bias, reestimate_batch_norm
from haq.quant.tree import tensors_in
from haq.types import Measurement, Policy


class _Split(Protocol):
    def head(self, count: int) -> _Split: ...
    def batches(self, batch_size: int) -> Iterator[tuple[Any, Any]]: ...


class PTQEvaluator:
    """Scores policies on a split without training.

    Metric and loss are called once, with the outputs of all batches joined along the first dimension, so that scores
    which are no mean over samples (F1, mean average precision) come out right.

    Args:
        model: switched to each policy in turn; left at the last one.
        split: what to score on; put on the model's device once.
        metric: a name in `METRICS` or your own function.
        loss: a name in `LOSSES`, your own function, or `None` to leave it out of the details.
        batch_size: samples per forward pass.
        samples: how many of the split, from its start; all by default.
        kind: `bn` re-estimates batch norm for each policy, whatever the model's quantization settings say.
        standard_error: put `score_error`, the standard error of the score, into the details; for accuracy it is always
            there, for other metrics it takes ten more calls of the metric.

    Raises:
        InputError: unknown metric or loss.
    """

    def __init__(
        self,
        model: QuantizedModel,
        split: _Split,
        *,
        metric: str | Metric = "accuracy",
        loss: str | Loss | None = "cross_entropy",
        batch_size: int = 256,
        samples: int | None = None,
        kind: Literal["ptq", "bn"] = "ptq",
        standard_error: bool = False,
    ) -> None:
        self.model = model
        self._metric = _named(METRICS, metric, "metric")
        self._loss = None if loss is None else _named(LOSSES, loss, "loss")
        self._standard_error = standard_error
        self._reestimates = kind == "bn" or model.quantization.batch_norm == "reestimate"
        part = split if samples is None else split.head(samples)
        batches = list(part.batches(batch_size))
        self._inputs = [model.to_device(inputs) for inputs, _ in batches]
        self._targets = model.to_device(_join([targets for _, targets in batches]))
        self._float: Measurement | None = None

    @property
    def fidelity(self) -> str:
        """`bn` if batch norm is re-estimated for each policy, else `ptq`."""
        return "bn" if self._reestimates else "ptq"

    def __call__(self, policy: Policy) -> Measurement:
        """Apply `policy`, run the compensations that the settings ask for, and score.

        What fails under this policy but not in float makes a `Measurement` with an error, and so do outputs or a score
        that are not finite.

        Raises:
            InputError: the policy is for another model; or model, metric or loss fail in float as well.
        """
        start = time.perf_counter()
        self.model.apply(policy)
        try:
            if self.model.quantization.bias_correction:
                correct_bias(self.model)
            if self._reestimates:
                reestimate_batch_norm(self.model)
            return self._score(self.fidelity, start)
        except InputError as error:
            self.float_measurement()
            return Measurement(math.nan, self.fidelity, time.perf_counter() - start, error=str(error))

    def float_measurement(self) -> Measurement:
        """The float model's measurement (fidelity `float`), made once. Leaves the model float the first time."""
        if self._float is None:
            start = time.perf_counter()
            self.model.apply(None)
            self._float = self._score("float", start)
        return self._float

    def float_score(self) -> float:
        """The float model's score."""
        return self.float_measurement().score

    def _score(self, fidelity: str, start: float) -> Measurement:
        with torch.no_grad():
            outputs = self._outputs()
            if not all(_finite(tensor) for tensor in tensors_in(outputs)):
                seconds = time.perf_counter() - start
                return Measurement(math.nan, fidelity, seconds, error="the model's outputs are not finite")
            details = {}
            if self._loss is not None:
                details["loss"] = self._run(self._loss, outputs, "loss")
            score = self._run(self._metric, outputs, "metric")
            if (noise := self._noise(outputs, score)) is not None:
                details["score_error"] = noise
        details[_name(self._metric)] = score
        error = "" if math.isfinite(score) else f"the metric returned {score}"
        return Measurement(score, fidelity, time.perf_counter() - start, details, error)

    def _outputs(self) -> Any:
        try:
            return _join([self.model(inputs) for inputs in self._inputs])
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"the model failed on the data that it is scored on: {' '.join(str(error).split())}"
            ) from error

    def _noise(self, outputs: Any, score: float) -> float | None:
        """Standard error of the score: what a difference between two policies must exceed. `None` where unknown."""
        if self._metric is accuracy and isinstance(self._targets, Tensor):
            share = score / 100.0
            return 100.0 * math.sqrt(share * (1.0 - share) / self._targets.numel())
        return jackknife(self._metric, outputs, self._targets) if self._standard_error else None

    def _run(self, function: Metric | Loss, outputs: Any, role: str) -> float:
        try:
            return float(function(outputs, self._targets))
        except InputError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"the {role} {_name(function)!r} failed on outputs and targets of this model: {reason}"
            ) from error


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _named(registry: dict[str, Any], given: Any, role: str) -> Any:
    if callable(given):
        return given
    if given not in registry:
        raise InputError(
            f"unknown {role} {given!r}; known: {', '.join(sorted(registry))}, or give a function of outputs and targets"
        )
    return registry[given]


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _join(parts: list[Any]) -> Any:
    """One value from the batches': tensors along the first dimension, tuples and dicts entry by entry."""
    first = parts[0]
    if isinstance(first, Tensor):
        try:
            return torch.stack(parts) if first.dim() == 0 else torch.cat(parts)
        except RuntimeError as error:
            shapes = sorted({tuple(part.shape) for part in parts})
            raise InputError(
                f"outputs of different batches cannot be joined, their shapes are {shapes}; return tensors that differ "
                "in the first dimension only, or set the batch size to the number of samples"
            ) from error
    if isinstance(first, dict):
        return {key: _join([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(_join(list(column)) for column in zip(*parts, strict=True)))
    if isinstance(first, tuple | list):
        return tuple(_join(list(column)) for column in zip(*parts, strict=True))
    return parts
