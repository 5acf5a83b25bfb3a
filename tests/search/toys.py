"""The hidden-score toys of `benchmarks/strategies_toy.py`, a tie toy, and resuming at every trial."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from haq.problem import Problem
from haq.search.base import SearchStrategy
from haq.testing import StrategyFactory, play
from haq.types import Measurement, Policy, Trial


def benchmark() -> ModuleType:
    """`benchmarks/strategies_toy.py` as a module."""
    path = Path(__file__).parents[2] / "benchmarks" / "strategies_toy.py"
    spec = importlib.util.spec_from_file_location("strategies_toy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["strategies_toy"] = module
    spec.loader.exec_module(module)
    return module


def tied_problem(**changes: Any) -> Problem:
    """Four layers of 2 x 2 choices under two budgets; `a`, `b` share a choice and `c`, `d` an activation format."""
    choices = [
        {"weight_bits": w, "activation_bits": a, "sensitivity": 10.0 / w + 6.0 / a, "costs": {"ms": w * a, "bytes": w}}
        for w in (2, 8)
        for a in (4, 8)
    ]
    document = {
        "schema_version": 1,
        "layers": [{"name": name, "choices": choices} for name in "abcd"],
        "ties": [["a", "b"]],
        "activation_ties": [["c", "d"]],
        "budgets": {"ms": 130.0, "bytes": 26.0},
        "objective": "sensitivity",
    }
    return Problem.from_doc({**document, **changes})


def trial(problem: Problem, policy: Policy, number: int, score: float) -> Trial:
    return Trial(number, "toy", policy, problem.costs(policy), Measurement(score, "toy"))


def resumed(problem: Problem, factory: StrategyFactory, played: list[Trial]) -> list[list[Policy]]:
    """What a new strategy suggests that got the first 0, 1, 2, ... trials in one update."""
    result = []
    for count in range(len(played)):
        strategy: SearchStrategy = factory(problem, seed=3)
        strategy.update(played[:count])
        result.append(strategy.suggest(1))
    return result


def first_trials(problem: Problem, factory: StrategyFactory, count: int) -> list[Trial]:
    return play(problem, factory(problem, seed=3), trials=count)
