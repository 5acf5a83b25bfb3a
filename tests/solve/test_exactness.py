"""The solvers against the list of all policies, on random small problems with everything a document may hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assignments, optima, price, random_problem

from haq.problem.problem import Problem
from haq.solve.lagrangian import Lagrangian
from haq.solve.pool import Pool
from haq.solve.solve import minima, solve
from haq.values.errors import InputError

SEEDS = st.integers(0, 2**32)


def read(doc: dict[str, Any]) -> Problem | None:
    """The problem; nothing where the activation ties leave no policy, which must then be so."""
    if assignments(doc):
        return Problem.from_doc(doc)
    with pytest.raises(InputError, match="activation_ties"):
        Problem.from_doc(doc)
    return None


def magnitude(doc: dict[str, Any]) -> float:
    return max(abs(price(doc, policy)[doc["objective"]]) for policy in assignments(doc)) or 1.0


def check_solution(doc: dict[str, Any], *, top: int = 1, **options: Any) -> None:
    problem = read(doc)
    if problem is None:
        return
    expected = optima(doc, top)
    solution = solve(problem, top=top, **options)
    assert solution.status == ("optimal" if expected else "infeasible")
    assert solution.values == pytest.approx(expected, rel=1e-9, abs=1e-9 * magnitude(doc))
    assert len({found.tobytes() for found in solution.assignments}) == len(expected)
    for found, value in zip(solution.assignments, solution.values, strict=True):
        policy = problem.policy(found)
        assert not problem.violation(policy)
        assert problem.objective_value(policy) == value


@settings(max_examples=250, deadline=None)
@given(SEEDS)
def test_the_best_policies_are_the_best(seed: int) -> None:
    check_solution(random_problem(seed), top=1 + seed % 4)


@settings(max_examples=120, deadline=None)
@given(SEEDS)
def test_the_integer_program_after_fixing(seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("haq.solve.solve._LISTED", 0)
        check_solution(random_problem(seed, layers=5, choices=4), top=1 + seed % 3)


@settings(max_examples=120, deadline=None)
@given(SEEDS)
def test_the_whole_integer_program_with_highs(seed: int) -> None:
    pytest.importorskip("highspy")
    check_solution(random_problem(seed), top=1 + seed % 3, presolve=False, solver="highs")


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_the_whole_integer_program_with_cbc(seed: int) -> None:
    check_solution(random_problem(seed), top=1 + seed % 2, presolve=False, solver="cbc")


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_the_lagrangian_bound_is_a_bound_and_its_policies_are_within_budget(seed: int) -> None:
    doc = random_problem(seed)
    problem = read(doc)
    if problem is None or problem.objective == "peak_activation_bytes":
        return
    pool = Pool(problem, keep=3)
    dual = Lagrangian(problem, pool)
    dual.ascend()
    expected = optima(doc)
    if dual.infeasible:
        assert not expected
        return
    dual.polish()
    if expected:
        assert dual.bound <= expected[0] + 1e-9 * magnitude(doc)
    for value, found in pool.found:
        assert not problem.violation(problem.policy(found))
        assert value >= expected[0] - 1e-9 * magnitude(doc)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_fixing_keeps_every_policy_as_good_as_the_best_known(seed: int) -> None:
    doc = random_problem(seed)
    problem = read(doc)
    if problem is None or problem.objective == "peak_activation_bytes" or not optima(doc):
        return
    pool = Pool(problem)
    dual = Lagrangian(problem, pool)
    dual.ascend()
    dual.polish()
    best = pool.best if pool.found else float("inf")
    allowed = dual.surviving()
    for policy in assignments(doc):
        costs = price(doc, policy)
        within = all(costs[m] <= b for m, b in doc["budgets"].items())
        if within and costs[doc["objective"]] < best - 1e-9 * magnitude(doc):
            row = [policy[members[0]] for members in problem.groups]
            assert all(allowed[problem.tables.start[group] + choice] for group, choice in enumerate(row))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_minima_are_the_least_achievable_values(seed: int) -> None:
    doc = random_problem(seed)
    problem = read(doc)
    if problem is None:
        return
    priced = [price(doc, policy) for policy in assignments(doc)]
    expected = {metric: min(costs[metric] for costs in priced) for metric in doc["budgets"]}
    assert minima(problem) == pytest.approx(expected, rel=1e-9, abs=1e-12)
