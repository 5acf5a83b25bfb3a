from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from reference import optima
from toys import additive, tied_problem

from haq.bench.regret import Contender
from haq.problem.problem import Problem
from haq.search import Differentiable, make_strategy
from haq.testing import TOYS, chain_document, check_strategy, play
from haq.values.errors import InfeasibleError, InputError


def learning(problem: Problem, *, seed: int, **options: Any) -> Differentiable:
    return Differentiable(problem, seed=seed, model=additive(problem), **{"steps": 60, **options})


def test_it_passes_the_conformance_checks() -> None:
    check_strategy(partial(learning, steps=20), reaches_optimum=False)


@pytest.mark.parametrize("name", TOYS)
def test_with_an_additive_loss_it_comes_near_the_optimum_at_once(name: str) -> None:
    toy = TOYS[name]
    every = optima(dict(toy.document), 10_000)
    (first,) = play(toy.problem, learning(toy.problem, seed=0, steps=200), trials=1)
    if len(every) > 2:
        assert first.costs["sensitivity"] <= np.quantile(every, 0.5)


def test_of_two_like_layers_the_one_that_loses_more_gets_the_bits() -> None:
    """Only one of the two can have 8 bits; b loses ten times what a does."""

    def layer(name: str, loss: float) -> dict[str, Any]:
        choices = [
            {"weight_bits": bits, "activation_bits": 8, "sensitivity": loss / bits, "costs": {"ms": bits}}
            for bits in (2, 8)
        ]
        return {"name": name, "choices": choices}

    document = {"schema_version": 1, "layers": [layer("a", 1.0), layer("b", 10.0)], "budgets": {"ms": 10.0}}
    problem = Problem.from_doc({**document, "objective": "sensitivity"})
    (policy,) = learning(problem, seed=0).suggest(1)
    assert [policy[name].weight.bits for name in "ab"] == [2, 8]


def test_without_a_budget_in_the_way_every_logit_favours_the_least_loss() -> None:
    problem = tied_problem(budgets={"ms": 1e6})
    strategy = learning(problem, seed=0)
    starts = problem.tables.start[1:-1]
    favoured = [int(part.argmax()) for part in np.split(strategy.logits(), starts)]
    least = [int(part.argmin()) for part in np.split(problem.tables.unary["sensitivity"], starts)]
    assert favoured == least


def test_over_budget_the_multipliers_push_the_logits_down() -> None:
    """What the logits favour costs less under a tight budget than under a loose one."""
    document = chain_document(8, bits=(2, 4, 8))

    def favoured(share: float) -> float:
        problem = Problem.from_doc({**document, "budgets": {"latency_ms": share * document["budgets"]["latency_ms"]}})
        parts = np.split(learning(problem, seed=0, steps=200, penalty=0.5).logits(), problem.tables.start[1:-1])
        row = np.array([[int(part.argmax()) for part in parts]])
        return float(problem.tables.total("latency_ms", row)[0])

    assert favoured(0.6) < favoured(10.0)


def test_no_policy_within_budget_is_an_error() -> None:
    problem = TOYS["knapsack"].problem.with_budgets({"latency_ms": 2.5})
    with pytest.raises(InfeasibleError, match=r"latency_ms 3 \(budget 2\.5\)"):
        learning(problem, seed=0).suggest(1)


def test_it_says_that_it_needs_the_model() -> None:
    problem = TOYS["knapsack"].problem
    for make in (lambda: Differentiable(problem), lambda: make_strategy("differentiable", problem)):
        with pytest.raises(InputError, match="'differentiable' trains the model"):
            make()
    with pytest.raises(InputError, match="use it in haq search"):
        Contender("d", "differentiable", {})


def test_another_objective_is_refused() -> None:
    problem = tied_problem(budgets={"sensitivity": 50.0}, objective="ms")
    with pytest.raises(InputError, match="differentiable' minimises the loss itself: it needs objective"):
        learning(problem, seed=0)
