"""For authors of search strategies: toy problems whose optimum is listed, and the checks that a strategy must pass.

A test of a new strategy is one line: `check_strategy(MyStrategy)`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from haq.problem.problem import Problem
from haq.search.strategy import SearchStrategy
from haq.values.policy import Policy
from haq.values.trial import Measurement, Trial

StrategyFactory = Callable[..., SearchStrategy]
"""Called as `factory(problem, seed=...)`."""


@dataclass(frozen=True)
class Toy:
    """A small problem and the objective of its best policy, worked out by hand.

    Attributes:
        document: as `Problem.from_doc` reads it.
        optimum: the least objective within budget.
        policies: how many policies are within budget.
    """

    document: Mapping[str, Any]
    optimum: float
    policies: int

    @property
    def problem(self) -> Problem:
        return Problem.from_doc(self.document)


def layer(name: str, choices: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """A layer document: `{"w4a8": (sensitivity, latency in ms), ...}`."""
    entries = []
    for text, (sensitivity, latency) in choices.items():
        weight, activation = text.removeprefix("w").split("a")
        bits = {"weight_bits": int(weight), "activation_bits": int(activation)}
        entries.append({**bits, "sensitivity": sensitivity, "costs": {"latency_ms": latency}})
    return {"name": name, "choices": entries}


def _document(layers: Sequence[Mapping[str, Any]], latency: float, **parts: Any) -> dict[str, Any]:
    budgets = {"latency_ms": latency}
    return {"schema_version": 1, "layers": list(layers), "budgets": budgets, "objective": "sensitivity", **parts}


_THREE = {"w2a8": (9.0, 1.0), "w4a8": (3.0, 2.0), "w8a8": (1.0, 4.0)}
_BOTH = {"w8a4": (5.0, 1.0), "w8a8": (1.0, 2.0)}
_SWITCH = [[0.0, 2.0], [2.0, 0.0]]

TOYS: dict[str, Toy] = {
    # 8 ms hold w8, w4, w4 (4 + 2 + 2) in any order: 1 + 3 + 3.
    "knapsack": Toy(_document([layer(name, _THREE) for name in "abc"], 8.0), 7.0, 20),
    # a and b together: w4 twice leaves 4 ms for w8 in c (3 + 3 + 1).
    "tied": Toy(_document([layer(name, _THREE) for name in "abc"], 8.0, ties=[["a", "b"]]), 7.0, 6),
    # 8 bits in two layers (5 ms) need a switch of 2 ms; in all three, 6 ms and none.
    "chain": Toy(
        _document(
            [layer(name, _BOTH) for name in "abc"],
            6.0,
            edges=[
                {"from": first, "to": second, "metric": "latency_ms", "costs": _SWITCH}
                for first, second in (("a", "b"), ("b", "c"))
            ],
        ),
        3.0,
        4,
    ),
    # Two readers that want 4 bits of an 8-bit tensor share one copy: 2 + 1 + 1 + 2 ms. One reader alone at 4 bits takes
    # 2 + 1 + 2 + 2 ms, which is too long; both at 8 bits need no copy: 2 + 2 + 2 ms.
    "fan_out": Toy(
        _document(
            [layer("a", {"w8a8": (1.0, 2.0)}), layer("b", _BOTH), layer("c", _BOTH)],
            6.0,
            tensors=[
                {
                    "from": "a",
                    "to": ["b", "c"],
                    "metric": "latency_ms",
                    "activation_bits": [4, 8],
                    "costs": _SWITCH,
                }
            ],
        ),
        3.0,
        2,
    ),
    "one_policy": Toy(_document([layer("a", {"w8a8": (1.0, 1.0)})], 1.0), 1.0, 1),
}


def chain_document(
    layers: int, *, bits: Sequence[int] = (2, 3, 4, 6, 8), share: float = 0.4, seed: int = 0
) -> dict[str, Any]:
    """A network of `layers` in a row, every weight width with every activation width, two budgets, switching costs.

    Args:
        layers: how many.
        bits: widths of weights and activations; five give 25 choices.
        share: where the budgets lie between the cost of the lowest and that of the highest bits.
        seed: of the random layer sizes and sensitivities.
    """
    rng = random.Random(seed)
    pairs = list(itertools.product(bits, bits))
    entries: list[dict[str, Any]] = []
    edges = []
    for index in range(layers):
        macs, params = rng.uniform(1, 20), rng.uniform(1e3, 2e5)
        weight_loss, activation_loss = 10 ** rng.uniform(-3, 0), 10 ** rng.uniform(-3, 0)
        choices = [
            {
                "weight_bits": weight,
                "activation_bits": activation,
                "sensitivity": weight_loss * 4.0**-weight + activation_loss * 4.0**-activation * rng.uniform(0.8, 1.2),
                "costs": {
                    "latency_ms": macs * (0.2 + weight * activation / 64) * rng.uniform(0.9, 1.1),
                    "size_bytes": params * weight / 8,
                },
            }
            for weight, activation in pairs
        ]
        entries.append({"name": f"layer{index}", "choices": choices})
    for index in range(layers - 1):
        elements = rng.uniform(0.1, 2)
        costs = [[0.0 if p[1] == q[1] else elements * (p[1] + q[1]) / 8 for q in pairs] for p in pairs]
        ends = {"from": f"layer{index}", "to": f"layer{index + 1}"}
        edges.append({**ends, "metric": "latency_ms", "costs": costs})

    def total(metric: str, choice: int) -> float:
        return float(sum(entry["choices"][choice]["costs"][metric] for entry in entries))

    budgets = {
        metric: (1 - share) * total(metric, 0) + share * total(metric, -1) for metric in ("latency_ms", "size_bytes")
    }
    return {"schema_version": 1, "layers": entries, "edges": edges, "budgets": budgets, "objective": "sensitivity"}


def play(problem: Problem, strategy: SearchStrategy, *, trials: int, count: int = 1, first: int = 0) -> list[Trial]:
    """The search loop with the predicted objective as the measurement (larger is better, so negated)."""
    played: list[Trial] = []
    while len(played) < trials:
        proposed = strategy.suggest(min(count, trials - len(played)))
        if not proposed:
            break
        new = [_trial(problem, policy, first + len(played) + index) for index, policy in enumerate(proposed)]
        strategy.update(new)
        played += new
    return played


def _trial(problem: Problem, policy: Policy, number: int) -> Trial:
    costs = problem.costs(policy)
    return Trial(number, "toy", policy, costs, Measurement(-costs[problem.objective], "toy"))


def check_strategy(factory: StrategyFactory, *, reaches_optimum: bool = True, trials: int = 24) -> None:
    """Run every check of a search strategy on every toy problem.

    Args:
        factory: the strategy's class, or anything called like it.
        reaches_optimum: whether the best of `trials` policies must be the optimum; not so for baselines.
        trials: how many policies to ask for at most.

    Raises:
        AssertionError: names the toy and what the strategy did wrong.
    """
    for name, toy in TOYS.items():
        problem = toy.problem
        played = play(problem, factory(problem, seed=0), trials=trials)
        _check_valid(name, problem, played)
        if reaches_optimum and trials >= toy.policies:
            best = min(trial.costs[problem.objective] for trial in played)
            _require(abs(best - toy.optimum) < 1e-9, name, f"found {best}, the optimum is {toy.optimum}")
        _check_repeatable(name, problem, factory, played)
        _check_batches(name, problem, factory, played, trials)


def _require(holds: bool, toy: str, message: str) -> None:
    if not holds:
        raise AssertionError(f"toy {toy}: {message}")


def _check_valid(name: str, problem: Problem, played: Sequence[Trial]) -> None:
    _require(bool(played), name, "no policy was proposed though some are within budget")
    for trial in played:
        _require(not problem.violation(trial.policy), name, f"over budget: {problem.violation(trial.policy)}")
    _require(len({trial.policy for trial in played}) == len(played), name, "a policy was proposed twice")


def _check_repeatable(name: str, problem: Problem, factory: StrategyFactory, played: Sequence[Trial]) -> None:
    """The same seed gives the same search, and a search resumed from half its trials goes on in the same way."""
    policies = [trial.policy for trial in played]
    again = [trial.policy for trial in play(problem, factory(problem, seed=0), trials=len(played))]
    _require(again == policies, name, "the same seed gave another search")
    half = len(played) // 2
    resumed = factory(problem, seed=0)
    resumed.update(played[:half])
    rest = [trial.policy for trial in play(problem, resumed, trials=len(played) - half, first=half)]
    _require(rest == policies[half:], name, f"resumed after {half} trials, the search went on differently")


def _check_batches(name: str, problem: Problem, factory: StrategyFactory, played: Sequence[Trial], trials: int) -> None:
    """Asked for several at once, it proposes at most so many, valid ones, and is exhausted."""
    strategy = factory(problem, seed=0)
    proposed = strategy.suggest(3)
    _require(0 < len(proposed) <= 3, name, f"suggest(3) gave {len(proposed)} policies")
    _check_valid(name, problem, [_trial(problem, policy, index) for index, policy in enumerate(proposed)])
    if len(played) < trials:
        strategy = factory(problem, seed=0)
        strategy.update(played)
        _require(strategy.suggest(1) == [], name, "it was exhausted, but proposed more after a resume")
