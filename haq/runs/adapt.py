"""`haq adapt`: a controller for a family, fitted on held-out samples and scored on the test split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.adaptive.bounds import lower_bound
from haq.adaptive.cascade import Cascade
from haq.adaptive.controller import Controller, run_adaptive, save_controller
from haq.adaptive.family import Family, Member, load, read_document
from haq.adaptive.gate import Gate
from haq.experiment.experiment import Experiment
from haq.quant.nested import map_tensors, tensors_in
from haq.values.errors import InputError

CONTROLLERS = ("cascade", "gate")
_BATCH = 256
_ALLOWED = 0.005
"""Share of right answers that may be lost where no target is given."""


@dataclass(frozen=True)
class _Answers:
    """What each member says on a split."""

    inputs: Any
    logits: tuple[Tensor, ...]
    targets: Tensor

    @property
    def right(self) -> NDArray[np.bool_]:
        """`[members, samples]`."""
        found: NDArray[np.bool_] = torch.stack([one.argmax(dim=1) == self.targets for one in self.logits]).numpy()
        return found


def stored_experiment(folder: Path) -> Experiment:
    """The experiment that a family says it is from; refused where that runs code.

    Raises:
        InputError: none, damaged, or one that names code.
    """
    return Experiment.recorded(read_document(folder).get("experiment"), source=folder)


def adapt(
    experiment: Experiment,
    folder: Path,
    *,
    controller: str = "cascade",
    confidence: str = "margin",
    accuracy: float | None = None,
    cost: str | None = None,
    by: str | None = None,
    delta: float = 0.05,
    measure: int = 0,
) -> dict[str, Any]:
    """Fit a controller on the search split, write it into the family's folder, and score it once on the test split.

    Args:
        experiment: gives model and data.
        folder: of the family.
        controller: a name in `CONTROLLERS`.
        confidence: of a cascade: `probability`, `margin` or `entropy`.
        accuracy: least accuracy in per cent, promised with probability 1 - delta; default without `cost`: half a point
            below what the search split promises of the most precise member; or
        cost: largest average cost: a number in the unit of `by`, or a percentage of the most precise member's.
        by: the cost metric; default: bops.
        delta: probability that the promise does not hold.
        measure: samples of the test split that are timed one by one in ONNX Runtime.

    Returns:
        `rows`: static members, the controller, an oracle that knows the cheapest member that is right, and a random
        choice of the same average cost, each with accuracy, its standard error, and average costs; `share` of samples
        that each member answered; `file`.

    Raises:
        InputError: no classifier, an unknown name, or a target that cannot be reached; says the best that can.
    """
    if controller not in CONTROLLERS:
        raise InputError(f"--controller {controller!r}: unknown; known: {', '.join(CONTROLLERS)}")
    if accuracy is not None and cost is not None:
        raise InputError("--accuracy and --cost: give one of them")
    family = load(folder, experiment.model)
    metric, prices = _prices(family.members, by)
    held = _answers(family, experiment.data.search)
    wanted = (
        {"accuracy": None, "cost": _cost(cost, prices)}
        if cost
        else {"accuracy": _share(accuracy, held, delta), "cost": None}
    )
    made: Controller
    if controller == "cascade":
        made = Cascade.fit(held.logits, held.targets, costs=prices, confidence=confidence, delta=delta, **wanted)
    else:
        known = _answers(family, experiment.data.train)
        train, search = ((one.inputs, one.logits, one.targets) for one in (known, held))
        made = Gate.fit(train, search, costs=prices, delta=delta, **wanted)
    fit = {"metric": metric, "target": wanted, "delta": delta, "samples": len(held.targets)}
    file = save_controller(made, folder, fit)
    rows, share = _rows(family, made, _answers(family, experiment.data.test), metric)
    document = {
        "schema_version": 1,
        "controller": controller,
        "by": metric,
        "target": wanted,
        "delta": delta,
        "samples": {"search": len(held.targets), "test": len(experiment.data.test)},
        "rows": rows,
        "share": share,
        "file": str(file),
    }
    if measure:
        document["measured"] = _measured(folder, made, experiment.data.test.head(measure))
    return document


def _prices(members: Sequence[Member], by: str | None) -> tuple[str, list[float]]:
    known = [metric for metric in _sums(members) if all(metric in one.costs for one in members)]
    metric = by or ("bops" if "bops" in known or not known else known[0])
    if metric not in known:
        raise InputError(f"--by {metric}: no cost that adds up over what runs; this family has {', '.join(known)}")
    return metric, [one.costs[metric] for one in members]


def _cost(text: str | None, prices: Sequence[float]) -> float:
    assert text is not None
    try:
        value = float(text.removesuffix("%"))
    except ValueError as error:
        raise InputError(f"--cost {text!r}: expected a number or a percentage such as 60%") from error
    return value / 100.0 * prices[-1] if text.endswith("%") else value


def _share(accuracy: float | None, held: _Answers, delta: float) -> float:
    if accuracy is None:
        hits = held.right[-1]
        return lower_bound(int(hits.sum()), len(hits), delta) - _ALLOWED
    if not 0 < accuracy <= 100:
        raise InputError(f"--accuracy {accuracy:g}: expected per cent, more than 0 and at most 100")
    return accuracy / 100.0


def _answers(family: Family, split: Any) -> _Answers:
    """Outputs of all members over a split, in batches.

    Raises:
        InputError: outputs are not scores of classes for each sample.
    """
    (inputs, targets), logits = next(iter(split.batches(2**62))), []
    for member in range(len(family.members)):
        found = [next(iter(tensors_in(family.predict(part, member)))) for part in _parts(inputs)]
        logits.append(torch.cat(found))
    if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.is_floating_point() or logits[0].dim() != 2:
        raise InputError(
            "a controller chooses among classifiers: outputs [samples, classes] and class numbers as targets; use the "
            "family with Fixed or Ladder, which look at the device alone"
        )
    return _Answers(inputs, tuple(logits), targets)


def _parts(inputs: Any) -> list[Any]:
    count = len(next(tensors_in(inputs)))
    return [
        map_tensors(lambda tensor, at=at: tensor[at : at + _BATCH], inputs)  # type: ignore[misc]
        for at in range(0, count, _BATCH)
    ]


def _rows(family: Family, made: Controller, test: _Answers, metric: str) -> tuple[list[dict[str, Any]], list[float]]:
    members, right = family.members, test.right
    samples = np.arange(right.shape[1])
    rows = [_row(one.name, right[number], dict(one.costs)) for number, one in enumerate(members)]
    table = np.stack([one.numpy() for one in test.logits])  # members have answered: nothing runs twice
    found = run_adaptive(_Looked(table), made, _numbered(test.inputs), members=len(members))
    costs = {name: found.ran @ np.array([one.costs[name] for one in members]) for name in _sums(members)}
    averages = {name: float(value.mean()) for name, value in costs.items()}
    rows.append(_row(made.kind, right[found.answered, samples], averages))
    cheapest = np.where(right.any(axis=0), right.argmax(axis=0), 0)
    picked = {name: float(np.array([one.costs[name] for one in members])[cheapest].mean()) for name in averages}
    rows.append(_row("oracle", right[cheapest, samples], picked))
    rows.append(_random(members, right, averages[metric], metric))
    share = [float((found.answered == number).mean()) for number in range(len(members))]
    return rows, share


class _Looked:
    """Outputs that are known, by the numbers of the samples."""

    def __init__(self, table: NDArray[Any]) -> None:
        self._table = table

    def __call__(self, inputs: Any, member: int) -> Tensor:
        return torch.from_numpy(self._table[member][inputs[-1].numpy()])


def _numbered(inputs: Any) -> tuple[Any, Tensor]:
    return (inputs, torch.arange(len(next(tensors_in(inputs)))))


def _sums(members: Sequence[Member]) -> list[str]:
    """Metrics that add up over members that run."""
    left_out = ("peak_activation_bytes", "size_bytes", "average_weight_bits", "sensitivity")
    return [metric for metric in members[0].costs if metric not in left_out]


def _row(name: str, hits: NDArray[np.bool_], costs: Mapping[str, float]) -> dict[str, Any]:
    share = float(hits.mean())
    error = (share * (1 - share) / max(1, len(hits) - 1)) ** 0.5
    return {"name": name, "accuracy": 100 * share, "standard_error": 100 * error, "costs": dict(costs)}


def _random(members: Sequence[Member], right: NDArray[np.bool_], average: float, metric: str) -> dict[str, Any]:
    """Each sample by chance from two members, so that the average cost is the same; the two that then score best."""
    accuracy, cost = right.mean(axis=1), np.array([one.costs[metric] for one in members])
    best: tuple[float, float, int, int] = (float(accuracy[0]), 0.0, 0, 0)
    for low in range(len(members)):
        for high in range(low, len(members)):
            span = cost[high] - cost[low]
            part = 0.0 if span <= 0 else float(np.clip((average - cost[low]) / span, 0.0, 1.0))
            if cost[low] + part * span <= average * (1 + 1e-9):
                best = max(best, (float((1 - part) * accuracy[low] + part * accuracy[high]), part, low, high))
    value, part, low, high = best
    costs = {m: (1 - part) * members[low].costs[m] + part * members[high].costs[m] for m in _sums(members)}
    error = 100 * (value * (1 - value) / max(1, right.shape[1] - 1)) ** 0.5
    return {"name": "random", "accuracy": 100 * value, "standard_error": error, "costs": costs}


def _measured(folder: Path, made: Controller, split: Any) -> list[dict[str, Any]]:
    """Milliseconds of a sample in ONNX Runtime on one thread: mean, median and 99th percentile, turn about."""
    from haq.adaptive.sessions import load_onnx

    running = load_onnx(folder)
    count = len(running.members)
    (inputs, _) = next(iter(split.batches(2**62)))
    samples = [
        map_tensors(lambda tensor, at=at: tensor[at : at + 1], inputs)  # type: ignore[misc]
        for at in range(len(next(tensors_in(inputs))))
    ]
    ways: dict[str, Callable[[Any], Any]] = {
        one.name: partial(running.predict, member=number) for number, one in enumerate(running.members)
    }
    ways[made.kind] = partial(run_adaptive, running.predict, made, members=count)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for sample in samples:
        for name, way in ways.items():
            start = perf_counter()
            way(sample)
            times[name].append(1e3 * (perf_counter() - start))
    return [
        {
            "name": name,
            "mean_ms": float(np.mean(t)),
            "p50_ms": float(np.median(t)),
            "p99_ms": float(np.quantile(t, 0.99)),
        }
        for name, t in times.items()
    ]
