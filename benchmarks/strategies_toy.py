"""Strategies on toys whose score is hidden from the tables: `python benchmarks/strategies_toy.py [--seeds 20]`.

Each toy has six layers with four choices each, 4,096 policies, under a latency and a size budget. Its score is additive
over layers plus an interaction of every pair of layers; the tables know the additive part only, and that with an error.
All policies are listed, so the optimum is known. Shown is the regret (best score within budget less the best found) as
a part of the range of scores within budget: median and quartiles over seeds, each with its own toy, and the one-sided
p-value of a Mann-Whitney test against random search (normal approximation with ties).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from haq.bench.statistics import smaller
from haq.problem.problem import Problem
from haq.search import make_strategy
from haq.search.strategy import SearchStrategy
from haq.values.policy import Policy
from haq.values.trial import Measurement, Trial

LAYERS, CHOICES = 6, ("w2a4", "w2a8", "w4a4", "w4a8")
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "evolutionary": ("evolutionary", {}),
    "bayesian, tpe": ("bayesian", {}),
    "bayesian, gp": ("bayesian", {"sampler": "gp"}),
    "bayesian, nsga2": ("bayesian", {"sampler": "nsga2"}),
    "evolutionary, warm": ("evolutionary", {"warm_start": "ilp"}),
    "bayesian, tpe, warm": ("bayesian", {"warm_start": "ilp"}),
}


@dataclass(frozen=True)
class HiddenToy:
    """A problem, the score of each of its policies, and the scores within budget."""

    problem: Problem
    score: Callable[[Policy], float]
    within: np.ndarray

    def regret(self, best: float) -> float:
        """How far `best` lies under the optimum, as a part of the range of scores within budget."""
        return float((self.within.max() - best) / np.ptp(self.within))


def hidden_toy(seed: int) -> HiddenToy:
    rng = np.random.default_rng(seed)
    bits = [tuple(int(digit) for digit in (text[1], text[3])) for text in CHOICES]
    noise = np.array([[16.0 / 4**weight + 64.0 / 4**activation for weight, activation in bits]])
    loss = rng.lognormal(0.0, 1.0, (LAYERS, 1)) * noise * rng.lognormal(0.0, 0.3, (LAYERS, len(bits)))
    predicted = loss * rng.lognormal(0.0, 0.5, loss.shape)
    pairs = {pair: rng.normal(0.0, 0.3, (4, 4)) for pair in itertools.combinations(range(LAYERS), 2)}
    macs, params = rng.uniform(1, 20, LAYERS), rng.uniform(1e3, 2e4, LAYERS)
    layers = [
        {
            "name": f"layer{i}",
            "choices": [
                {
                    "weight_bits": w,
                    "activation_bits": a,
                    "sensitivity": predicted[i, c],
                    "costs": {"latency_ms": macs[i] * w * a / 64, "size_bytes": params[i] * w / 8},
                }
                for c, (w, a) in enumerate(bits)
            ],
        }
        for i in range(LAYERS)
    ]
    budgets = {"latency_ms": 0.6 * sum(macs) * 32 / 64, "size_bytes": 0.8 * sum(params) * 4 / 8}
    document = {"schema_version": 1, "layers": layers, "budgets": budgets, "objective": "sensitivity"}
    problem = Problem.from_doc(document)

    def scores(rows: np.ndarray) -> np.ndarray:
        total = loss[np.arange(LAYERS), rows].sum(axis=1)
        return 90.0 - total - sum(matrix[rows[:, i], rows[:, j]] for (i, j), matrix in pairs.items())

    every = np.array(list(itertools.product(range(len(bits)), repeat=LAYERS)))
    within = scores(every[problem.within(every)])
    return HiddenToy(problem, lambda policy: float(scores(problem.assignment(policy)[None])[0]), within)


def search(toy: HiddenToy, strategy: SearchStrategy, evaluations: int) -> list[float]:
    """The scores measured, in order."""
    found: list[float] = []
    while len(found) < evaluations and (proposed := strategy.suggest(1)):
        (policy,) = proposed
        measurement = Measurement(toy.score(policy), "toy")
        strategy.update([Trial(len(found), "toy", policy, toy.problem.costs(policy), measurement)])
        found.append(measurement.score)
    return found


def regrets(name: str, options: dict[str, Any], *, seeds: int, evaluations: int) -> np.ndarray:
    """Regret of the best policy after each evaluation, `[seeds, evaluations]`."""
    rows = []
    for seed in range(seeds):
        toy = hidden_toy(seed)
        found = search(toy, make_strategy(name, toy.problem, seed=seed, options=options), evaluations)
        best = np.maximum.accumulate(found + [found[-1]] * (evaluations - len(found)))
        rows.append([toy.regret(score) for score in best])
    return np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=sorted(CONTENDERS), default=list(CONTENDERS))
    args = parser.parse_args()
    marks = [mark for mark in (10, 25, 50, 100, 200) if mark <= args.evaluations]
    table = Table("strategy", *(f"regret at {mark}, %" for mark in marks), "p", "CPU s")
    baseline = regrets("random", {}, seeds=args.seeds, evaluations=args.evaluations)
    for title in args.only:
        name, options = CONTENDERS[title]
        began = time.process_time()
        rows = regrets(name, options, seeds=args.seeds, evaluations=args.evaluations)
        seconds = (time.process_time() - began) / args.seeds
        cells = ["{1:.2f} [{0:.2f}, {2:.2f}]".format(*np.percentile(100 * rows[:, m - 1], (25, 50, 75))) for m in marks]
        against = "" if title == "random" else f"{smaller(rows[:, -1], baseline[:, -1]):.1g}"
        table.add_row(title, *cells, against, f"{seconds:.2f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
