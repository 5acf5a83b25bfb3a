"""How many workers, and which compressor: the least step time by the cost model. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haq.distributed.cost_model import Link, Method
from haq.edges.documents import read_json
from haq.values.errors import InputError

MEASURED = Path(__file__).parent / "measured.json"
"""What `python benchmarks/gradient_compression.py --json` printed for ResNet-20, on two cores that others used, too."""
SUMMED = ("none", "fp16", "bf16", "powersgd", "randomk", "randomk_unbiased")
"""Compressors whose messages are all-reduced; all others gather."""
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_CLOSE = 1.05
"""A plan within 5 % of the fastest step with fewer workers is the better one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to train.

    Attributes:
        compressor: its name.
        workers: how many.
        exchange: `all-reduce`, `all-gather` or `parameter server`.
        seconds: of a step.
    """

    compressor: str
    workers: int
    exchange: str
    seconds: float


def load_methods(path: Path | None = None) -> list[Method]:
    """Compressors with what they cost, from a file that `benchmarks/gradient_compression.py --json` printed.

    Args:
        path: of the file; default: figures that come with the package.

    Raises:
        InputError: no such file, or one that holds something else.
    """
    document = read_json(path or MEASURED)
    methods = [Method("none", "all-reduce", 1.0, 0.0)]
    try:
        methods += [_method(name, row) for name, row in document.items()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: {error!r}; give what python benchmarks/gradient_compression.py --json printed"
        ) from error
    return methods


def _method(name: str, row: dict[str, Any]) -> Method:
    ratio, seconds = float(row["bytes_ratio"]), float(row["seconds_per_mb"])
    if not (ratio > 0 and seconds >= 0):
        raise ValueError(f"{name}: bytes_ratio {ratio}, seconds_per_mb {seconds}")
    if name in SUMMED:
        return Method(name, "all-reduce", ratio, seconds, rounds=1)
    # The hook's time in a group of one has one encoding and one decoding; which is which was not measured: half each.
    return Method(name, "all-gather", ratio, seconds / 2, seconds / 2, rounds=1)


def plans(
    methods: Iterable[Method], *, parameters: int, compute_seconds: float, link: Link, workers: Sequence[int] = WORKERS
) -> list[Plan]:
    """Every compressor with every number of workers, fastest first; the batch of a step stays the same.

    Messages that are gathered may go to each other or through a parameter server, which decodes them and sends one
    answer in float32: the faster of the two counts.

    Args:
        methods: to choose from.
        parameters: of the model.
        compute_seconds: of one worker alone for the whole batch.
        link: of each worker.
        workers: to choose from.
    """
    size = 4.0 * parameters
    found = []
    for method in methods:
        for count in workers:
            seconds = method.step_seconds(size, count, compute_seconds / count, link)
            found.append(Plan(method.name, count, method.collective, seconds))
            if method.collective == "all-gather" and count > 1:
                served = compute_seconds / count + _served(method, size, count, link)
                found.append(Plan(method.name, count, "parameter server", served))
    return sorted(found, key=lambda plan: plan.seconds)


def _served(method: Method, size: float, workers: int, link: Link) -> float:
    coding = (method.seconds_per_mb + workers * method.decode_seconds_per_mb) * size / 1e6
    return coding + link.seconds(workers * (size / method.ratio + size), 2)


def recommended(found: Sequence[Plan]) -> Plan:
    """Of the plans within 5 % of the fastest, the one with the fewest workers; then the fastest."""
    fastest = min(plan.seconds for plan in found)
    return min(
        (plan for plan in found if plan.seconds <= _CLOSE * fastest), key=lambda plan: (plan.workers, plan.seconds)
    )
