"""What a run says of itself: which trial is the answer, and how it is compared with the baselines."""

import itertools
import math

import numpy as np
import pytest

from haq.problem.problem import Problem
from haq.results.verdict import verdict
from haq.runs.result import Leader
from haq.search.answer import choose
from haq.testing import TOYS
from haq.values.trial import Measurement, Trial

PROBLEM = TOYS["knapsack"].problem


def trial(number, choices, score, *, source="ilp", problem=PROBLEM):
    policy = problem.policy(choices)
    failed = Measurement(math.nan, "ptq", error="diverged")
    measurement = failed if score is None else Measurement(score, "ptq")
    return Trial(number=number, policy=policy, source=source, costs=problem.costs(policy), measurement=measurement)


def test_the_best_score_within_budget_wins_and_ties_go_to_the_smaller_objective():
    over, low = trial(0, [2, 2, 2], 99.0), trial(1, [0, 0, 0], 80.0)
    first, second = trial(2, [1, 0, 0], 90.0), trial(3, [1, 1, 0], 90.0)
    assert PROBLEM.violation(over.policy)
    assert choose([over, low, first, second], PROBLEM, floor=None) is second
    assert choose([over, trial(4, [0, 0, 1], None)], PROBLEM, floor=None) is None


def test_with_a_cost_as_objective_the_cheapest_that_reaches_the_floor_wins():
    problem = PROBLEM.with_budgets({"latency_ms": 100.0}, objective="latency_ms")
    cheap, dear = trial(0, [0, 0, 0], 80.0, problem=problem), trial(1, [2, 2, 2], 95.0, problem=problem)
    middle = trial(2, [1, 1, 1], 91.0, problem=problem)
    assert choose([cheap, dear, middle], problem, floor=90.0) is middle
    assert choose([cheap, dear, middle], problem, floor=None) is cheap
    assert choose([cheap, middle], problem, floor=99.0) is middle


def noisy(problem, rows, *, deviation, seed):
    """Trials whose loss is 0.1 + 0.3 times the predicted loss, and noise."""
    rng, found = np.random.default_rng(seed), []
    for number, row in enumerate(rows):
        policy = problem.policy(row)
        costs = problem.costs(policy)
        loss = 0.1 + 0.3 * costs["sensitivity"] + deviation * rng.standard_normal()
        found.append(Trial(number, "random", policy, costs, Measurement(-loss, "ptq", details={"loss": loss})))
    return found


def test_a_fitted_answer_is_not_the_luckiest_policy():
    problem = PROBLEM.with_budgets({"latency_ms": 100.0})
    rows = np.array(list(itertools.product(range(3), repeat=3)))
    worse = {False: [], True: []}
    for seed in range(20):
        trials = noisy(problem, rows, deviation=0.5, seed=seed)
        for fitted, own in worse.items():
            answer = choose(trials, problem, floor=None, fitted=fitted)
            own.append(answer.costs["sensitivity"] - min(trial.costs["sensitivity"] for trial in trials))
    assert sum(worse[True]) < 0.5 * sum(worse[False])


def test_without_noise_the_fitted_answer_is_the_best_measured():
    problem = PROBLEM.with_budgets({"latency_ms": 100.0})
    rows = np.array(list(itertools.product(range(3), repeat=3)))
    trials = noisy(problem, rows, deviation=0.0, seed=0)
    assert choose(trials, problem, floor=None, fitted=True) is choose(trials, problem, floor=None)


def test_the_leader_is_marked_with_its_lead_over_uniform():
    leader = Leader(PROBLEM, None)
    assert leader.mark(trial(0, [0, 0, 0], 80.0, source="uniform")) == "  best so far"
    assert leader.mark(trial(1, [2, 2, 2], 99.0, source="uniform")) == ""
    assert leader.mark(trial(2, [1, 0, 0], 70.0)) == ""
    assert leader.mark(trial(3, [1, 1, 0], 90.5)) == "  best so far, +10.5 against uniform"
    assert leader.mark(trial(4, [0, 1, 0], None)) == ""


def entry(score, *, source="ilp", noise=0.3, bits=(4, 8), latency=1.0):
    policy = {name: {"weight_bits": width, "activation_bits": 8} for name, width in zip(("a", "b"), bits, strict=True)}
    costs = {"latency_ms": latency}
    return {"source": source, "policy": policy, "test_score": score, "test_noise": noise, "costs": costs}


def said(answer, **baselines):
    return verdict(
        {
            "answer": answer,
            "answer_is_baseline": False,
            "baselines": {"uniform": None, "greedy": None, **baselines},
            "score_unit": "%",
            "budgets": {},
            "objective": "sensitivity",
            "accuracy_drop": {"search": 1.0, "test": 94.0 - (answer["test_score"] or 0.0)},
        }
    )


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (entry(90.0, bits=(4, 4)), "beats uniform w4a8 by 3.00 points (noise ±0.85)"),
        (entry(92.5, bits=(2, 4)), "ties with uniform (+0.50 points, noise ±0.85)"),
        (entry(94.0, bits=(2, 4)), "loses to uniform by 1.00 points (noise ±0.85)"),
        (entry(93.0), "the same policy as uniform"),
        (entry(None, bits=(2, 2)), "the uniform w2a8 policy could not be measured"),
        (None, "no uniform policy meets the budgets"),
    ],
)
def test_the_verdict_tells_wins_ties_and_losses_by_the_noise(other, words):
    text = said(entry(93.0), uniform=other)
    assert text.startswith("93.00 % on the test split, 1.00 points below float")
    assert words in text


def test_scores_that_are_no_percentages_keep_their_digits():
    result = {
        "answer": entry(-0.00123, noise=1e-5),
        "answer_is_baseline": False,
        "baselines": {"uniform": entry(-0.00456, noise=1e-5, bits=(2, 2))},
        "score_unit": "",
        "budgets": {},
        "objective": "sensitivity",
        "accuracy_drop": {"search": 0.0, "test": 0.00023},
    }
    text = verdict(result)
    assert text.startswith(
        "-0.00123 on the test split, 0.00023 below float; beats uniform w2a8 by 0.00333 (noise ±2.83e-05)"
    )


def test_an_answer_that_fails_on_the_test_split_is_told():
    assert said(entry(None)) == "The answer could not be measured on the test split."


def test_a_missed_accuracy_drop_is_told():
    result = {
        "answer": entry(92.0),
        "answer_is_baseline": True,
        "baselines": {},
        "score_unit": "%",
        "budgets": {"accuracy_drop": 1.0},
        "objective": "latency_ms",
        "accuracy_drop": {"search": 0.9, "test": 2.0},
    }
    text = verdict(result)
    assert "on the search split it loses 0.90 of the 1 points allowed, but more on the test split" in text
    assert "the search found nothing better than ilp" in text


@pytest.mark.parametrize(
    ("latency", "words"), [(3.5, "costs 2.5 less latency_ms"), (0.25, "costs 0.75 more latency_ms")]
)
def test_with_a_cost_as_objective_the_verdict_says_what_is_saved(latency, words):
    other = entry(90.0, bits=(2, 2), latency=latency)
    result = {
        "answer": entry(92.0, latency=1.0),
        "answer_is_baseline": False,
        "baselines": {"uniform": other},
        "score_unit": "%",
        "budgets": {},
        "objective": "latency_ms",
        "accuracy_drop": {"search": 0.0, "test": 0.0},
    }
    assert f"beats uniform w2a8 by 2.00 points (noise ±0.85) and {words}" in verdict(result)


def test_toy_problem_is_what_these_tests_take_it_for():
    assert isinstance(PROBLEM, Problem)
    assert list(PROBLEM.budgets) == ["latency_ms"]
