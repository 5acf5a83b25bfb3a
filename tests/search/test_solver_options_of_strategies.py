"""Gap, time limit and solver reach every solve of every strategy, and of those that it starts from."""

from __future__ import annotations

import time

import pytest

import haq.solve.solve
from haq.problem.problem import Problem
from haq.search import STRATEGIES, Greedy, make_strategy
from haq.solve.infeasible import infeasible
from haq.solve.settings import SolverSettings
from haq.testing import TOYS, chain_document


@pytest.fixture
def solves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float, str]]:
    """Gap, seconds and solver of each solve."""
    seen: list[tuple[float, float, str]] = []
    search = haq.solve.solve._search

    def spy(problem, pool, gap, deadline, solver, presolve):
        seen.append((gap, deadline - time.perf_counter(), solver))
        return search(problem, pool, gap, deadline, solver, presolve)

    monkeypatch.setattr(haq.solve.solve, "_search", spy)
    return seen


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_each_solve_of_a_strategy_has_them(name: str, solves) -> None:
    if name == "bayesian":
        pytest.importorskip("optuna")
    problem = Problem.from_doc(chain_document(12, seed=1))
    options = {"gap": 0.25, "time_limit": 1.5, "solver": "cbc"}
    if name == "differentiable":

        def flat(mixture, step, rate):
            return 0.0, {layer: 0 * parts for layer, parts in mixture.items()}

        strategy = make_strategy(name, problem, options=options | {"steps": 1}, model=lambda: flat)
    else:
        strategy = make_strategy(name, problem, options=options | {"warm_start": "ilp"})
    assert strategy.suggest(2)
    assert solves
    assert {(gap, solver) for gap, _, solver in solves} == {(0.25, "cbc")}
    assert all(0 < seconds <= 1.5 for _, seconds, _ in solves)


def test_the_least_achievable_values_have_the_time_and_the_solver(solves) -> None:
    problem = TOYS["chain"].problem.with_budgets({"latency_ms": 2.9})
    error = infeasible(problem, SolverSettings(time_limit=1.5, solver="cbc"))
    assert error.minimum == {"latency_ms": 3.0}
    assert {solver for _, _, solver in solves} == {"cbc"}


def test_strategies_without_solves_take_the_options_all_the_same() -> None:
    strategy = make_strategy("greedy", TOYS["chain"].problem, options={"gap": 0.1})
    assert isinstance(strategy, Greedy)
