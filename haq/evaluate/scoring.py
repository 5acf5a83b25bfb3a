"""How outputs become a measurement: shared by all evaluators."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from haq.evaluate.base import LOSSES, METRICS, Metric
from haq.evaluate.chance import chance_score
from haq.evaluate.standard_error import jackknife
from haq.quant import QuantizedModel
from haq.quant.nested import Batches, Loss, joined, map_tensors, tensors_in
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Measurement

_SHARES = ("accuracy", "agreement")
"""Metrics that are shares of the samples in per cent, where outputs have no positions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """How outputs on a split are scored, whatever evaluator they come from.

    Metric and loss are called once, with the outputs of all batches joined along the first dimension, so that scores
    which are no mean over samples (F1, mean average precision) come out right.

    Attributes:
        metric: a name in `METRICS` or your own function.
        loss: a name in `LOSSES`, your own function, or `None` to leave it out of the details.
        batch_size: samples per forward pass.
        samples: how many of the split, from its start; all by default.
        standard_error: put `score_error`, the standard error of the score, into the details; for the metrics in
            `METRICS` it is always there, for your own it takes ten more calls of the metric. It counts samples, not
            positions within them.
        amp: run the model in bfloat16 autocast. Calibration, training and compensations are not changed by it, and
            metric and loss stay in float32; they get their tensors on the CPU in any case.
    """

    metric: str | Metric = "accuracy"
    loss: str | Loss | None = "cross_entropy"
    batch_size: int = 256
    samples: int | None = None
    standard_error: bool = False
    amp: bool = False


class SplitEvaluator:
    """What the evaluators have in common: the split they score on, how, and the float model's score.

    Args:
        model: the quantized model; left at the policy that was scored last, or float.
        split: what to score on; put on the model's device once.
        scoring: how.

    Raises:
        InputError: unknown metric or loss.
    """

    def __init__(self, model: QuantizedModel, split: Batches, *, scoring: Scoring) -> None:
        self.model = model
        self._amp = scoring.amp
        self._metric = _named(METRICS, scoring.metric, "metric")
        self._loss = None if scoring.loss is None else _named(LOSSES, scoring.loss, "loss")
        self._standard_error = scoring.standard_error
        part = split if scoring.samples is None else split.head(scoring.samples)
        batches = list(part.batches(scoring.batch_size))
        self._inputs = [model.to_device(inputs) for inputs, _ in batches]
        self._targets = map_tensors(Tensor.cpu, joined([targets for _, targets in batches]))
        self._float: Measurement | None = None

    @property
    def fidelity(self) -> str:
        """What its measurements are called."""
        raise NotImplementedError

    def __call__(self, policy: Policy) -> Measurement:
        """Score `policy`."""
        raise NotImplementedError

    def float_measurement(self) -> Measurement:
        """The float model's measurement (fidelity `float`), made once. Leaves the model float the first time."""
        if self._float is None:
            start = time.perf_counter()
            self.model.apply(None)
            self._float = self._score(self.model, "float", start)
        return self._float

    @property
    def samples(self) -> int:
        """How many samples are scored."""
        return sum(len(next(tensors_in(inputs))) for inputs in self._inputs)

    def chance_score(self) -> float | None:
        """What a model scores that looks at no input, for metrics where that is known; see `haq.evaluate.chance`."""
        return chance_score(_name(self._metric), self._targets)

    def float_score(self) -> float:
        """The float model's score."""
        return self.float_measurement().score

    def _score(self, model: Callable[[Any], Any], fidelity: str, start: float) -> Measurement:
        with torch.no_grad():
            outputs = self._outputs(model)
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

    def _outputs(self, model: Callable[[Any], Any]) -> Any:
        try:
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self._amp):
                parts = [map_tensors(_to_score, model(inputs)) for inputs in self._inputs]
            return joined(parts)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"the model failed on the data that it is scored on: {' '.join(str(error).split())}"
            ) from error

    def _noise(self, outputs: Any, score: float) -> float | None:
        """Standard error of the score: what a difference between two policies must exceed. `None` where unknown."""
        if _name(self._metric) in _SHARES and isinstance(outputs, Tensor) and outputs.dim() == 2:
            share = score / 100.0
            return 100.0 * math.sqrt(share * (1.0 - share) / len(outputs))
        known = self._standard_error or _name(self._metric) in METRICS
        return jackknife(self._metric, outputs, self._targets) if known else None

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


def _to_score(tensor: Tensor) -> Tensor:
    return tensor.float().cpu() if tensor.dtype == torch.bfloat16 else tensor.cpu()


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
