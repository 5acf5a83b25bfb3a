"""The whole integer program on problems where one term alone decides, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from haq.problem.problem import Problem
from haq.solve.solve import solve, solve_document
from haq.testing import TOYS

PAIRS = [(weight, activation) for weight in range(1, 9) for activation in (4, 8)]


def layer(name: str, *choices: tuple[int, int, float, float]) -> dict[str, Any]:
    """Choices are weight bits, activation bits, sensitivity, latency."""
    rows = [
        {"weight_bits": w, "activation_bits": a, "sensitivity": loss, "costs": {"latency_ms": ms}}
        for w, a, loss, ms in choices
    ]
    return {"name": name, "choices": rows}


def problem(layers: list[dict[str, Any]], budgets: dict[str, float], **more: Any) -> Problem:
    document = {"schema_version": 1, "layers": layers, "budgets": budgets, "objective": "sensitivity", **more}
    return Problem.from_doc(document)


FIXED = layer("fixed", (8, 8, 0.0, 15.0))
FREE = layer("free", *((w, a, 16.0 - index, 1.0 + index) for index, (w, a) in enumerate(PAIRS)))
"""The more milliseconds, 1 to 16, the less loss, 16 to 1."""


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_what_a_layer_without_a_choice_takes_is_taken_off_the_budget(solver: str) -> None:
    answer = solve(problem([FIXED, FREE], {"latency_ms": 18.0}), presolve=False, solver=solver)
    assert (answer.status, answer.values) == ("optimal", (14.0,))  # 3 ms are left


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_the_memory_of_a_layer_without_a_choice_counts(solver: str) -> None:
    step = {"step": "s", "fixed": 10.0, "live": {"fixed": [50.0], "free": [float(1 + index) for index in range(16)]}}
    asked = problem([FIXED, FREE], {"peak_activation_bytes": 64.0}, peak=[step])
    answer = solve(asked, presolve=False, solver=solver)
    assert (answer.status, answer.values) == ("optimal", (13.0,))  # 4 bytes are left


@pytest.mark.parametrize("solver", ["highs", "cbc"])
@pytest.mark.parametrize("presolve", [True, False])
def test_a_tensor_with_two_readers_is_charged(solver: str, presolve: bool) -> None:
    layers = [
        layer("a", (8, 8, 0.0, 1.0), (4, 4, 0.0, 0.0)),
        layer("b", (8, 8, 0.0, 1.0), (4, 4, 0.0, 3.0)),
        layer("c", (8, 8, 0.0, 1.0), (4, 4, 0.0, 3.0)),
    ]
    costs = [[0.0, 10.0], [10.0, 0.0]]
    tensor = {"from": "a", "to": ["b", "c"], "metric": "latency_ms", "activation_bits": [4, 8], "costs": costs}
    document = {"schema_version": 1, "layers": layers, "tensors": [tensor], "budgets": {}, "objective": "latency_ms"}
    answer = solve(Problem.from_doc(document), presolve=presolve, solver=solver)
    assert (answer.status, answer.values) == ("optimal", (3.0,))


def test_slack_is_what_is_left_of_a_budget() -> None:
    answer = solve_document(problem([FIXED, FREE], {"latency_ms": 18.5, "sensitivity": 20.0}))
    assert answer["costs"] == {"latency_ms": 18.0, "sensitivity": 14.0}
    assert answer["slack"] == {"latency_ms": 0.5, "sensitivity": 6.0}
    assert answer["minimum"] == {"latency_ms": 16.0, "sensitivity": 1.0}


def test_minima_stand_alone_whatever_the_other_budgets() -> None:
    toy = TOYS["knapsack"].problem
    loose, tight = (solve_document(toy.with_budgets({"latency_ms": ms, "sensitivity": 1e6})) for ms in (1e6, 1e-3))
    assert loose["minimum"] == tight["minimum"]
