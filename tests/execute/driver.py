"""A search with Ray workers in a process of its own, to be killed: `driver.py FOLDER WORKERS PARALLEL [ADDRESS]`."""

import sys
from pathlib import Path

from evaluators import POLICIES, Priced, Scripted

from haq.execute import RayExecutor
from haq.search.journal import Journal
from haq.search.loop import run_search
from haq.search.strategy import SearchStrategy

TRIALS = 20


class Learning(SearchStrategy):
    """What it proposes depends on every score that it was told, in order, and on what it has proposed."""

    def __init__(self):
        self.told, self.seen = [], set()

    def suggest(self, count):
        new = []
        for _ in range(count):
            left = [policy for policy in POLICIES if policy.key not in self.seen]
            new.append(left[int(1e6 * abs(sum(self.told))) % len(left)])
            self.seen.add(new[-1].key)
        return new

    def update(self, trials):
        for trial in trials:
            self.told.append(trial.measurement.score * len(self.told))
            self.seen.add(trial.policy.key)


def search(folder, executor, *, parallel, on_trial=lambda trial: None):
    """The search, or what is left of it."""
    folder = Path(folder)
    with Journal.open(folder / "trials.jsonl", {"parallel": parallel}, resume=True) as journal:
        return run_search(
            Priced(),
            Learning(),
            executor,
            name="learning",
            max_trials=TRIALS,
            journal=journal,
            parallel=parallel,
            fixed=[("uniform", policy) for policy in POLICIES[:3]],
            on_trial=on_trial,
        )


def main():
    folder, workers, parallel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    executor = RayExecutor(Scripted, {"folder": folder, "seconds": 0.2}, workers=workers)
    search(folder, executor, parallel=parallel)
    executor.close()


if __name__ == "__main__":
    main()
