"""What the search loop, the journal, the cache and Ray cost: overhead per evaluation, two workers, up to 64 workers.

    python benchmarks/executor.py [overhead] [workers] [scaling] [--trials 1000] [--json]

`overhead`: trivial evaluations through the whole loop, each journalled (synced to disk) and cached. `workers`: busy
single-threaded evaluations by one and by two workers; as many cores must be free. `scaling`: evaluations that sleep,
by 1 to 64 workers, each an actor; efficiency is the time that the sleeps alone need over the wall time. Starting the
workers is left out everywhere.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from haq.execute import CachingExecutor, LocalExecutor, MeasurementCache, RayExecutor
from haq.search.journal import Journal
from haq.search.loop import Executor, run_search
from haq.search.strategy import SearchStrategy
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.values.trial import Measurement

LAYERS = 50
BUSY_SECONDS = 0.25


class Listed(SearchStrategy):
    """Ever new policies of a network of 50 layers."""

    def __init__(self) -> None:
        self._left = itertools.count()

    def suggest(self, count: int) -> list[Policy]:
        return [policy(next(self._left)) for _ in range(count)]

    def update(self, trials: object) -> None: ...


class Free:
    """Prices nothing."""

    def costs(self, policy: Policy) -> dict[str, float]:
        return {"bops": 1.0}

    def violation(self, policy: Policy) -> dict[str, float]:
        return {}


def policy(number: int) -> Policy:
    return Policy({f"layer{i}": Precision.parse(f"w{2 + (number // 7**i) % 7}a8") for i in range(LAYERS)})


def trivial(payload: Any) -> Callable[[Policy], Measurement]:
    return lambda policy: Measurement(1.0, "ptq")


def sleeping(seconds: float) -> Callable[[Policy], Measurement]:
    def evaluate(policy: Policy) -> Measurement:
        time.sleep(seconds)
        return Measurement(1.0, "ptq", seconds)

    return evaluate


def busy(rounds: int) -> Callable[[Policy], Measurement]:
    def evaluate(policy: Policy) -> Measurement:
        total = sum(i * i for i in range(rounds))
        return Measurement(float(total % 97), "ptq")

    return evaluate


def searched(executor: Executor, trials: int) -> float:
    """Wall seconds of a search of `trials` evaluations, all workers being up."""
    with tempfile.TemporaryDirectory() as folder:
        caching = CachingExecutor(executor, MeasurementCache(Path(folder), {}))
        if isinstance(executor, RayExecutor):
            executor.wait_for_workers()
        with Journal.create(Path(folder) / "trials.jsonl", {}) as journal:
            start = time.perf_counter()
            run_search(Free(), Listed(), caching, name="listed", max_trials=trials, journal=journal)
            return time.perf_counter() - start


def overhead(trials: int) -> dict[str, float]:
    result = {"local_ms": 1e3 * searched(LocalExecutor(trivial(None)), trials) / trials}
    executor = RayExecutor(trivial, None, workers=2)
    result["ray_ms"] = 1e3 * searched(executor, trials) / trials
    executor.close()
    return result


def workers(trials: int) -> dict[str, float]:
    rounds, start = 100_000, time.process_time()
    busy(rounds)(policy(0))
    rounds = int(rounds * BUSY_SECONDS / (time.process_time() - start))
    seconds = {}
    for count in (1, 2):
        executor = RayExecutor(busy, rounds, workers=count)
        seconds[count] = searched(executor, trials)
        executor.close()
    return {"one_seconds": seconds[1], "two_seconds": seconds[2], "speedup": seconds[1] / seconds[2]}


def scaling(counts: list[int], seconds: float, each: int) -> dict[str, float]:
    result = {}
    for count in counts:
        executor = RayExecutor(sleeping, seconds, workers=count)
        wall = searched(executor, each * count)
        executor.close()
        result[f"efficiency_{count}"] = each * seconds / wall
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["overhead", "workers", "scaling"], default=[])
    parser.add_argument("--trials", type=int, default=1000, help="of `overhead`")
    parser.add_argument("--busy-trials", type=int, default=40)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--sleep", type=float, default=1.0, help="seconds of a sleeping evaluation")
    parser.add_argument("--each", type=int, default=10, help="sleeping evaluations per worker")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wanted = options.what or ["overhead", "workers", "scaling"]
    figures: dict[str, float] = {}
    if "overhead" in wanted:
        figures |= overhead(options.trials)
    if "workers" in wanted:
        figures |= workers(options.busy_trials)
    if "scaling" in wanted:
        figures |= scaling(options.counts, options.sleep, options.each)
    if options.json:
        print(json.dumps(figures))
        return
    print(*(f"{key:16s} {value:10.3f}" for key, value in figures.items()), sep="\n")


if __name__ == "__main__":
    main()
