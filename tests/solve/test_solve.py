from __future__ import annotations

import json
from typing import Any

import pytest

from haq.problem.problem import Problem
from haq.solve.infeasible import infeasible
from haq.solve.solve import solve, solve_document
from haq.testing import TOYS, chain_document, layer


def test_the_document_says_everything() -> None:
    answer = solve_document(TOYS["chain"].problem)
    eight = {"weight_bits": 8, "activation_bits": 8}
    assert answer.pop("seconds") > 0
    assert answer == {
        "status": "optimal",
        "objective": 3.0,
        "bound": 3.0,
        "costs": {"latency_ms": 6.0, "sensitivity": 3.0},
        "policy": {"a": eight, "b": eight, "c": eight},
        "slack": {"latency_ms": 0.0},
        "minimum": {"latency_ms": 3.0},
    }


def test_top_lists_the_best_in_order() -> None:
    answer = solve_document(TOYS["knapsack"].problem, top=5)
    assert [entry["objective"] for entry in answer["solutions"]] == [7.0, 7.0, 7.0, 9.0, 13.0]
    assert answer["solutions"][0]["policy"] == answer["policy"]


def test_infeasible_says_the_least_achievable_values() -> None:
    problem = TOYS["chain"].problem.with_budgets({"latency_ms": 2.9, "sensitivity": 2.5})
    answer = solve_document(problem)
    assert (answer["status"], answer["policy"], answer["objective"], answer["bound"]) == (
        "infeasible",
        None,
        None,
        None,
    )
    assert answer["minimum"] == {"latency_ms": 3.0, "sensitivity": 3.0}
    json.dumps(answer, allow_nan=False)


def test_a_budget_on_sensitivity_gives_the_fastest_policy_with_at_most_this_loss() -> None:
    problem = TOYS["chain"].problem.with_budgets({"sensitivity": 11.0}, objective="latency_ms")
    answer = solve_document(problem)
    assert (answer["objective"], answer["costs"]["sensitivity"]) == (4.0 + 2.0, 3.0)


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_a_gap_is_met_and_reported(solver: str) -> None:
    problem = Problem.from_doc(chain_document(12, seed=3))
    exact = solve(problem)
    near = solve(problem, gap=0.2, presolve=False, solver=solver)
    assert exact.values[0] <= near.values[0] <= exact.values[0] * 1.25
    assert near.bound <= exact.values[0] * (1 + 1e-9)


@pytest.mark.parametrize("presolve", [True, False], ids=["presolved", "plain"])
@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_no_time_still_gives_an_honest_answer(solver: str, presolve: bool) -> None:
    problem = Problem.from_doc(chain_document(40, seed=1))
    solution = solve(problem, time_limit=1e-3, solver=solver, presolve=presolve)
    assert solution.status in ("optimal", "feasible", "unknown")
    assert bool(solution.values) == (solution.status != "unknown")
    assert solution.bound <= solve(problem).values[0] * (1 + 1e-9)


def test_three_hundred_layers_of_twenty_five_choices_to_a_tenth_of_a_per_cent() -> None:
    problem = Problem.from_doc(chain_document(300))
    solution = solve(problem, gap=1e-3)
    assert solution.values[0] - solution.bound <= 1e-3 * solution.values[0]
    assert not problem.violation(problem.policy(solution.assignments[0]))


def test_presolve_and_the_whole_program_agree() -> None:
    problem = Problem.from_doc(chain_document(25, seed=5))
    assert solve(problem).values == pytest.approx(solve(problem, presolve=False).values, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_scale_of_sensitivities_does_not_matter(scale: float) -> None:
    doc = chain_document(8, bits=(2, 4, 8), seed=2)
    exact = solve(Problem.from_doc(doc), presolve=False).values[0]
    for entry in doc["layers"]:
        for choice in entry["choices"]:
            choice["sensitivity"] *= scale
    assert solve(Problem.from_doc(doc), presolve=False).values[0] == pytest.approx(exact * scale, rel=1e-9)


def test_tiny_and_huge_sensitivities_side_by_side() -> None:
    """The huge ones are forced; among the tiny ones the best must still be found."""
    layers = [layer("huge", {"w8a8": (1e3, 1.0)})]
    layers += [layer(f"l{i}", {"w2a8": (2e-6 + i * 1e-7, 1.0), "w4a8": (1e-6, 2.0)}) for i in range(6)]
    doc = {"schema_version": 1, "layers": layers, "budgets": {"latency_ms": 10.0}, "objective": "sensitivity"}
    for presolve in (True, False):
        solution = solve(Problem.from_doc(doc), presolve=presolve)
        chosen = "".join(map(str, solution.assignments[0]))
        assert chosen == "0000111"


def rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}f}")


@pytest.mark.parametrize("digits", [6, 9, 12])
def test_a_budget_just_missed_is_missed(digits: int) -> None:
    """A bound written with few digits lies below the sum it stands for; solver tolerances must not let it through."""
    layers: list[dict[str, Any]] = [layer(f"l{i}", {"w4a8": (1.0, 1 / 3), "w8a8": (0.0, 2 / 3)}) for i in range(6)]
    bound = rounded(10 / 3, digits)
    doc = {"schema_version": 1, "layers": layers, "budgets": {"latency_ms": bound}, "objective": "sensitivity"}
    expected = 2.0 if digits == 12 else 3.0
    for presolve in (True, False):
        assert solve(Problem.from_doc(doc), presolve=presolve).values[0] == expected


def test_an_infeasible_budget_says_what_of_the_least_stays_in_float() -> None:
    document = chain_document(4, seed=2) | {"offsets": {"latency_ms": 50.0}, "budgets": {"latency_ms": 10.0}}
    error = infeasible(Problem.from_doc(document))
    assert error.minimum["latency_ms"] > 50.0
    assert str(error).endswith("of that, under every policy, for what stays in float: latency_ms 50")
    plain = infeasible(Problem.from_doc(chain_document(4, seed=2) | {"budgets": {"latency_ms": 1e-9}}))
    assert "float" not in str(plain)
