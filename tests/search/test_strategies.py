from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from reference import assignments, optima, price, random_problem
from toys import named

from haq.problem.problem import Problem
from haq.search import ILP, STRATEGIES, Greedy, RandomSearch, Uniform, strategy_class, uniform_policies
from haq.search.strategy import SearchStrategy
from haq.testing import TOYS, check_strategy, play
from haq.values.errors import InfeasibleError, InputError
from haq.values.policy import Policy
from haq.values.trial import Trial


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_pass_the_conformance_checks(name: str) -> None:
    check_strategy(named(name), reaches_optimum=name in ("ilp", "random"))


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_right(name: str) -> None:
    toy = TOYS[name]
    doc = dict(toy.document)
    priced = [price(doc, policy) for policy in assignments(doc)]
    within = [costs for costs in priced if all(costs[m] <= bound for m, bound in doc["budgets"].items())]
    assert (optima(doc), len(within)) == ([toy.optimum], toy.policies)


@pytest.mark.parametrize("seed", range(12))
def test_no_single_change_within_budget_improves_the_greedy_policy(seed: int) -> None:
    doc = random_problem(seed)
    problem = Problem.from_doc(doc)
    try:
        (policy,) = Greedy(problem).suggest(1)
    except InfeasibleError:
        pytest.skip("nothing within budget")
    own = problem.objective_value(policy)
    every = (Policy({name: problem.choices(name)[index] for name, index in row.items()}) for row in assignments(doc))
    others = [other for other in every if sum(other[name] != policy[name] for name in policy) == 1]
    allowed = [other for other in others if not problem.violation(other)]
    assert all(problem.objective_value(other) >= own - 1e-9 * abs(own) for other in allowed)


@pytest.mark.parametrize("name", TOYS)
def test_staying_where_one_is_is_no_move(name: str) -> None:
    problem = TOYS[name].problem
    (policy,) = Uniform(problem).suggest(1) or [uniform_policies(problem)[0]]
    assignment, tables = problem.assignment(policy), problem.tables
    _, over, _ = problem.near.price(assignment)
    assert np.isinf(over[tables.start[:-1] + assignment]).all()


class OverBudget(SearchStrategy):
    """Proposes the most expensive policy."""

    def __init__(self, problem: Problem, *, seed: int) -> None:
        self.problem = problem

    def suggest(self, count: int) -> list[Policy]:
        return [Policy({layer: self.problem.choices(layer)[-1] for layer in self.problem.layers})]

    def update(self, trials: Sequence[Trial]) -> None: ...


class Forgetful(Greedy):
    """Does not learn what was measured before a resume."""

    def update(self, trials: Sequence[Trial]) -> None: ...


class Twice(OverBudget):
    """Proposes one policy again and again."""

    def suggest(self, count: int) -> list[Policy]:
        return [Policy({layer: self.problem.choices(layer)[0] for layer in self.problem.layers})]


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (OverBudget, "toy knapsack: over budget"),
        (Twice, "toy knapsack: a policy was proposed twice"),
        (Forgetful, "exhausted, but proposed more"),
        (Uniform, "the optimum is"),
    ],
)
def test_the_conformance_checks_find_what_is_wrong(strategy: type[SearchStrategy], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_strategy(strategy)


def test_ilp_yields_all_policies_in_order() -> None:
    doc = dict(TOYS["knapsack"].document)
    problem = Problem.from_doc(doc)
    played = play(problem, ILP(problem, seed=0), trials=100, count=3)
    assert [trial.costs["sensitivity"] for trial in played] == pytest.approx(optima(doc, 100))


@pytest.mark.parametrize("name", ["ilp", "greedy", "random"])
def test_no_policy_within_budget_is_an_error_with_the_minimum(name: str) -> None:
    problem = TOYS["knapsack"].problem.with_budgets({"latency_ms": 2.5})
    with pytest.raises(InfeasibleError, match=r"latency_ms 3 \(budget 2\.5\)") as caught:
        STRATEGIES[name](problem, seed=0).suggest(1)
    assert caught.value.minimum == {"latency_ms": 3.0}


def test_uniform_ends_where_nothing_is_within_budget() -> None:
    problem = TOYS["knapsack"].problem.with_budgets({"latency_ms": 2.5})
    assert Uniform(problem).suggest(4) == []


def test_uniform_takes_the_nearest_choice_with_enough_bits() -> None:
    doc = {**TOYS["knapsack"].document, "budgets": {"latency_ms": 100.0}}
    doc["layers"] = [*doc["layers"][:2], {"name": "c", "choices": doc["layers"][2]["choices"][2:]}]
    shown = [" ".join(map(str, policy.values())) for policy in uniform_policies(Problem.from_doc(doc))]
    assert shown == ["w8a8 w8a8 w8a8", "w4a8 w4a8 w8a8", "w2a8 w2a8 w8a8"]


def test_greedy_spends_what_is_left_of_the_budget() -> None:
    problem = TOYS["knapsack"].problem
    (policy,) = Greedy(problem).suggest(1)
    assert sorted(map(str, policy.values())) == ["w4a8", "w4a8", "w8a8"]


@pytest.mark.parametrize("seed", range(12))
def test_random_search_uses_up_a_finite_space(seed: int) -> None:
    doc = random_problem(seed, layers=3)
    expected = optima(doc, 10_000)
    if not expected:
        pytest.skip("nothing within budget")
    problem = Problem.from_doc(doc)
    played = play(problem, RandomSearch(problem, seed=seed), trials=10_000, count=7)
    assert len({trial.policy for trial in played}) == len(played) == len(expected)


def test_random_seeds_differ() -> None:
    problem = TOYS["knapsack"].problem.with_budgets({})
    assert RandomSearch(problem, seed=1).suggest(8) != RandomSearch(problem, seed=2).suggest(8)


def test_an_unknown_strategy_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match=f"unknown strategy 'ipl'; known: {', '.join(sorted(STRATEGIES))}"):
        strategy_class("ipl")


def test_an_unknown_solver_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown solver 'gurobi'; known: auto, highs, cbc"):
        ILP(TOYS["chain"].problem, solver="gurobi").suggest(1)
