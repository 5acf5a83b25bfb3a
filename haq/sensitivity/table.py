"""The sensitivity table: read from its file or measured. `METRICS` is the registry of the metrics."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from haq.quant.model import QuantizedModel
from haq.sensitivity import fisher, gradient, hessian, kl, loss, sqnr
from haq.sensitivity.base import Formats, Loss, Metric, Progress, Samples, SensitivityTable, monotone, table_signature
from haq.sensitivity.local import float_model
from haq.values.errors import InputError
from haq.values.formats import Format

METRICS: dict[str, Metric] = {
    "fisher": fisher.score,
    "gradient": gradient.score,
    "hessian": hessian.score,
    "kl": kl.score,
    "loss": loss.score,
    "sqnr": sqnr.score,
}
_COMMON = {"model", "formats", "batches", "loss", "seed", "progress"}


def sensitivity_table(
    model: QuantizedModel,
    formats: Formats | Mapping[str, Sequence[Format]],
    samples: Samples,
    *,
    metric: str,
    loss: Loss,
    batch_size: int = 128,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    file: Path | None = None,
    progress: Progress | None = None,
) -> SensitivityTable:
    """The sensitivity of every layer and format, from `file` where it is there and fits, else measured (and saved).

    Scores below zero count as zero, and no format scores above one of fewer bits.

    Args:
        model: to score; left as found.
        formats: layer -> weight formats and activation formats, or one list for both.
        samples: data to score on, such as a `haq.zoo.Split`; part of the train split.
        metric: a name in `METRICS`.
        loss: `(outputs, targets)` -> mean loss of a batch.
        batch_size: samples per pass.
        seed: of what the metric draws.
        options: of the metric.
        file: to reuse or write.
        progress: called with steps done and their total.

    Raises:
        InputError: unknown metric, option or layer, scores that are not finite, or a file made for another setup.
    """
    score = _metric(metric, options or {})
    pairs = _pairs(model, formats)
    settings = {"metric": metric, "options": dict(options or {}), "seed": seed, "batch_size": batch_size}
    with float_model(model):
        signature = table_signature(model, pairs, samples, {**settings, "loss": _qualified_name(loss)})
    if file is not None and file.exists():
        return SensitivityTable.load(file, signature=signature)
    wall, processor = time.perf_counter(), time.process_time()
    weights, activations = score(
        model, pairs, samples.batches(batch_size), loss=loss, seed=seed, progress=progress, **(options or {})
    )
    _check_finite(metric, weights, activations)
    details = {
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "samples": len(samples.tensors()[0]),
        **settings,
    }
    table = SensitivityTable(metric, signature, monotone(weights), monotone(activations), details)
    if file is not None:
        table.save(file)
    return table


def _metric(name: str, options: Mapping[str, Any]) -> Metric:
    if name not in METRICS:
        raise InputError(f"unknown sensitivity metric {name!r}; known: {', '.join(sorted(METRICS))}")
    own = set(inspect.signature(METRICS[name]).parameters) - _COMMON
    if unknown := sorted(set(options) - own):
        has = f"it has {', '.join(sorted(own))}" if own else "it has none"
        raise InputError(f"sensitivity metric {name!r} has no option {', '.join(unknown)}; {has}")
    return METRICS[name]


def _pairs(model: QuantizedModel, formats: Formats | Mapping[str, Sequence[Format]]) -> Formats:
    if unknown := [name for name in formats if name not in model.layers]:
        raise InputError(f"no quantized layer {', '.join(unknown)}; the model has {', '.join(model.layers)}")
    pairs: dict[str, tuple[Sequence[Format], Sequence[Format]]] = {}
    for name, value in formats.items():
        if all(isinstance(entry, Format) for entry in value):
            pairs[name] = (value, value)  # type: ignore[assignment]
        else:
            weights, activations = value
            pairs[name] = (weights, activations)  # type: ignore[assignment]
    return pairs


def _qualified_name(function: Loss) -> str:
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def _check_finite(metric: str, *tables: Mapping[str, Mapping[str, float]]) -> None:
    for table in tables:
        for layer, row in table.items():
            for fmt, value in row.items():
                if not math.isfinite(value):
                    raise InputError(
                        f"sensitivity metric {metric!r} is {value} for layer {layer!r} in {fmt}; check that the loss "
                        "is finite on the data"
                    )
