"""The hidden-score toys of `benchmarks/strategies_toy.py`, a tie toy, and resuming at every trial."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from haq.problem.problem import Problem
from haq.problem.tables import Floats
from haq.search import make_strategy
from haq.search.strategy import SearchStrategy
from haq.testing import StrategyFactory, play
from haq.values.policy import Policy
from haq.values.trial import Measurement, Trial


def benchmark() -> ModuleType:
    """`benchmarks/strategies_toy.py` as a module."""
    path = Path(__file__).parents[1] / "benchmarks" / "strategies_toy.py"
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


def additive(problem: Problem) -> Any:
    """A model whose loss is the predicted loss of the mixture, noise added to what it says about each batch."""
    tables = problem.tables
    losses = {
        layer: tables.unary["sensitivity"][tables.start[g] : tables.start[g + 1]] / len(members)
        for g, members in enumerate(problem.groups)
        for layer in members
    }

    def model(mixture: Mapping[str, Floats], step: int, weight_lr: float) -> tuple[float, dict[str, Floats]]:
        rng = np.random.default_rng(step)
        slopes = {layer: row + rng.normal(0, 0.01, len(row)) for layer, row in losses.items()}
        return sum(float(mixture[layer] @ row) for layer, row in losses.items()), slopes

    return model


SMALL: dict[str, dict[str, Any]] = {
    "actor_critic": {"hidden": 16, "batch_size": 16, "warmup": 15},
    "differentiable": {"steps": 10},
}
"""Options with which a strategy is quick; others have none."""


def named(name: str, **options: Any) -> StrategyFactory:
    """A strategy of `STRATEGIES` with small networks and short trainings, on a model made up from the tables."""

    def make(problem: Problem, *, seed: int) -> SearchStrategy:
        chosen = {**SMALL.get(name, {}), **options}
        return make_strategy(name, problem, seed=seed, options=chosen, model=lambda: additive(problem))

    return make


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
