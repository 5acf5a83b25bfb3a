"""Answers called optimal are optimal at any scale of the terms: a dynamic programme in fractions says which is."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest

from haq.problem.problem import Problem
from haq.solve.solve import Solution, solve

SMALL_EXPONENTS = 9.0
LARGE_EXPONENTS = 15.0


def wide_document(
    seed: int, *, layers: int = 14, choices: int = 4, exponents: float = SMALL_EXPONENTS
) -> dict[str, Any]:
    """One budget on integer sizes; sensitivities from `10 ** -exponents` to `10 ** exponents`."""
    rng = random.Random(seed)
    rows = [
        [
            {
                "weight_bits": 2 + choice,
                "activation_bits": 8,
                "sensitivity": 10 ** rng.uniform(-exponents, exponents),
                "costs": {"size_bytes": rng.randint(0, 60)},
            }
            for choice in range(choices)
        ]
        for _ in range(layers)
    ]
    largest = sum(max(choice["costs"]["size_bytes"] for choice in row) for row in rows)
    return {
        "schema_version": 1,
        "layers": [{"name": f"l{i}", "choices": row} for i, row in enumerate(rows)],
        "budgets": {"size_bytes": int(largest * rng.uniform(0.3, 0.7))},
        "objective": "sensitivity",
    }


def least(document: dict[str, Any], count: int = 1) -> list[Fraction]:
    """The `count` least sums of sensitivities within the budget, over integer sizes, in exact arithmetic."""
    budget = document["budgets"]["size_bytes"]
    best: dict[int, list[Fraction]] = {0: [Fraction(0)]}
    for row in document["layers"]:
        following: dict[int, list[Fraction]] = {}
        for used, values in best.items():
            for choice in row["choices"]:
                size = used + choice["costs"]["size_bytes"]
                if size <= budget:
                    following.setdefault(size, []).extend(v + Fraction(choice["sensitivity"]) for v in values)
        best = {size: sorted(values)[:count] for size, values in following.items()}
    return sorted(value for values in best.values() for value in values)[:count]


def check(solution: Solution, expected: list[Fraction]) -> None:
    assert solution.status == ("optimal" if expected else "infeasible")
    assert solution.values == pytest.approx([float(value) for value in expected], rel=1e-7)


@pytest.mark.parametrize("exponents", [SMALL_EXPONENTS, LARGE_EXPONENTS], ids=["18 decades", "30 decades"])
@pytest.mark.parametrize("seed", range(317, 332))
def test_the_optimum_where_sensitivities_span_decades(seed: int, exponents: float) -> None:
    document = wide_document(seed, exponents=exponents)
    check(solve(Problem.from_doc(document)), least(document))


@pytest.mark.parametrize("solver", ["highs", "cbc"])
@pytest.mark.parametrize("seed", range(6))
def test_the_best_of_the_integer_program_where_sensitivities_span_decades(
    seed: int, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haq.solve.solve._LISTED", 0)
    document = wide_document(seed, layers=8)
    check(solve(Problem.from_doc(document), top=1 + seed % 4, solver=solver), least(document, 1 + seed % 4))


def test_where_sums_cancel_the_answer_is_not_called_optimal_beyond_what_is_proven() -> None:
    """Interactions of -2e12 beside sensitivities of 1e12 leave differences of 1e-2 to the rounding of the sums."""
    document = wide_document(5, layers=6, exponents=2.0)
    for row in document["layers"]:
        for choice in row["choices"]:
            choice["sensitivity"] += 1e12
    matrix = [[-2e12] * 4 for _ in range(4)]
    document["interactions"] = [
        {"between": [f"l{i}", f"l{i + 1}"], "costs": matrix} for i in range(0, len(document["layers"]), 2)
    ]
    solution = solve(Problem.from_doc(document))
    exact = min(least_with_pairs(document))
    assert solution.bound <= float(exact) + 1e-3
    if solution.status == "optimal":
        assert solution.values[0] == pytest.approx(float(exact), abs=1e-3)


def least_with_pairs(document: dict[str, Any]) -> list[Fraction]:
    return [value - 6 * Fraction(10**12) for value in least(document)]
