"""Timing policies against each other: pinned, interleaved, the median over rounds at one pace, and its noise."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import numpy as np

from haq.profiling.runtimes.base import Prepared

_SLICE_SECONDS = 0.02
_LEAST_RUNS = 3
_WARM_UP = 5
_MOST_NOISE = 3.0

Rounds = list[dict[str, float]]
"""For each round of repeats: policy key -> least milliseconds of that round."""


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """This process on `threads` processors, where the system can do that, and without garbage collection."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    enabled = gc.isenabled()
    gc.disable()
    with suppress(OSError):
        if allowed:
            os.sched_setaffinity(0, sorted(allowed)[-threads:])
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        with suppress(OSError):
            if allowed:
                os.sched_setaffinity(0, allowed)


def measure_rounds(
    prepared: Mapping[str, Prepared], rounds: int, *, threads: int, done: Callable[[dict[str, float]], None]
) -> None:
    """Run all policies in turn, `rounds` times; `done` gets the minima of each round as soon as it ends.

    A round gives every policy the same slice of time, so that a slow spell of the machine falls on all of them.
    """
    with pinned(threads):
        for entry in prepared.values():
            for _ in range(0 if entry.repeats_itself else _WARM_UP):
                entry.run()
        for index in range(rounds):
            # Forwards and backwards by turns: nothing that recurs with the rounds falls on the same policies.
            order = list(prepared)[:: -1 if index % 2 else 1]
            done({key: _slice(prepared[key]) for key in order})


def _slice(prepared: Prepared) -> float:
    if prepared.repeats_itself and (ms := prepared.run()) is not None:
        return ms
    best, runs, start = np.inf, 0, time.perf_counter()
    prepared.run()  # the caches hold another policy's weights
    while runs < _LEAST_RUNS or time.perf_counter() - start < _SLICE_SECONDS:
        before = time.perf_counter()
        own = prepared.run()
        best = min(best, (time.perf_counter() - before) * 1e3 if own is None else own)
        runs += 1
    return float(best)


def medians(rounds: Rounds) -> dict[str, float]:
    """Policy key -> the median over the rounds of their least milliseconds."""
    return {key: float(np.median([entry[key] for entry in rounds])) for key in rounds[0]}


def paces(rounds: Rounds, references: Sequence[str]) -> list[float]:
    """For each round the geometric mean of the milliseconds of `references`."""
    return [float(np.exp(np.mean([np.log(entry[key]) for key in references]))) for entry in rounds]


def paced(rounds: Rounds, references: Sequence[str], *, ms: float | None = None) -> Rounds:
    """The rounds as if the references had taken the same in each: `ms`, by default the median of what they took.

    The clock of a processor changes from one second to the next, by several per cent and for all policies alike; the
    ratio of two policies that are timed in the same round does not.
    """
    found = paces(rounds, references)
    wanted = float(np.median(found)) if ms is None else ms
    return [
        {key: time * wanted / pace for key, time in entry.items()} for entry, pace in zip(rounds, found, strict=True)
    ]


def noise_warning(percent: float) -> str | None:
    """What to tell whoever measures on a machine that is too busy; `None` where it is not."""
    if percent <= _MOST_NOISE:
        return None
    return (
        f"warning: the noise floor is {percent:.1f} %: this machine was busy; measure again when it is not, or "
        "with more --rounds"
    )


def noise_floor(rounds: Rounds) -> float:
    """Mean difference between the times from even and from odd rounds, in per cent: no model can be tested below it."""
    if len(rounds) < 2:
        return 0.0
    even, odd = medians(rounds[::2]), medians(rounds[1::2])
    return 100.0 * float(np.mean([abs(even[key] - odd[key]) / min(even[key], odd[key]) for key in even]))
