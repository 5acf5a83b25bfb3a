from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from toys import benchmark, tied_problem, trial

from haq.problem.problem import Problem
from haq.search import ILP, Evolutionary, Greedy, check_options
from haq.search.strategies.evolutionary import level_switch
from haq.testing import TOYS, chain_document, check_strategy, play
from haq.values.errors import InfeasibleError, InputError
from haq.values.formats import Precision
from haq.values.policy import Policy


@pytest.mark.parametrize(
    "options",
    [{}, {"population": 3, "offspring": 2}],
    ids=["default", "generations"],
)
def test_it_passes_the_conformance_checks(options: dict[str, Any]) -> None:
    check_strategy(partial(Evolutionary, **options))


def test_it_beats_random_search_on_a_hidden_score() -> None:
    toys = benchmark()
    ours = toys.regrets("evolutionary", {}, seeds=20, evaluations=100)[:, -1]
    random = toys.regrets("random", {}, seeds=20, evaluations=100)[:, -1]
    assert toys.smaller(ours, random) < 0.01


def test_the_rank_test_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 6, 15), rng.integers(1, 8, 20)
    expected = stats.mannwhitneyu(first, second, alternative="less", method="asymptotic").pvalue
    assert benchmark().smaller(first, second) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_a_level_switch_keeps_budgets_ties_and_nearly_the_usage(seed: int) -> None:
    problem = Problem.from_doc(chain_document(12, bits=(2, 4, 8), seed=seed))
    rng = np.random.default_rng(seed)
    now = problem.assignment(Greedy(problem).suggest(1)[0])
    used, changed = [], 0
    for _ in range(40):
        before, now = now, level_switch(problem, now, rng)
        assert problem.within(now[None])[0]
        changed += int((now != before).any())
        used.append(max(problem.evaluate(now[None])[metric][0] / bound for metric, bound in problem.budgets.items()))
    assert np.median(used) > 0.9
    assert changed > 30


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_children_mix_two_parents_at_the_crossover_rate(rate: float) -> None:
    """Between parents of the lowest and the highest bits one without crossover is a switch away from one."""
    document = chain_document(12, bits=(2, 8))
    problem = Problem.from_doc({**document, "budgets": {}})
    low, high = (problem.nearest(Policy.uniform(problem.layers, Precision.parse(f"w{b}a{b}"))) for b in (2, 8))
    farthest = 0
    for seed in range(30):
        strategy = Evolutionary(problem, seed=seed, population=2, mutation_rate=0.0, crossover_rate=rate)
        strategy.update([trial(problem, policy, number, 1.0) for number, policy in enumerate((low, high))])
        (child,) = strategy.suggest(1)
        distance = min(sum(child[name] != parent[name] for name in problem.layers) for parent in (low, high))
        farthest = max(farthest, distance)
    assert (farthest <= 2) == (rate == 0.0)


def test_tied_layers_stay_tied() -> None:
    problem = tied_problem()
    played = play(problem, Evolutionary(problem, seed=1, population=2), trials=200, count=3)
    policies = [entry.policy for entry in played]
    assert all(policy["a"] == policy["b"] for policy in policies)
    assert all(policy["c"].activation == policy["d"].activation for policy in policies)
    assert not any(problem.violation(policy) for policy in policies)


def test_before_a_measurement_it_proposes_what_the_tables_predict_to_be_good() -> None:
    problem = Problem.from_doc(chain_document(6, bits=(2, 4, 8)))
    (best,) = ILP(problem).suggest(1)
    (first,) = Evolutionary(problem, seed=0).suggest(1)
    assert problem.objective_value(first) < 2.0 * problem.objective_value(best)


def test_children_descend_from_the_best_measured_whatever_the_tables_predict() -> None:
    problem = Problem.from_doc(chain_document(12, bits=(2, 4, 8)))
    strategy = Evolutionary(problem, seed=0, population=2, mutation_rate=0.0, crossover_rate=0.0)
    pool = Evolutionary(problem, seed=9, population=12).suggest(12)
    scores = np.arange(12)[::-1].astype(float)
    strategy.update(
        [trial(problem, policy, i, score) for i, (policy, score) in enumerate(zip(pool, scores, strict=True))]
    )
    child = problem.assignment(strategy.suggest(1)[0])
    changed = [int((child != problem.assignment(policy)).sum()) for policy in pool]
    assert min(changed[:2]) <= 2 < min(changed[2:])


def test_failed_policies_have_no_children() -> None:
    problem = Problem.from_doc(chain_document(12, bits=(2, 4, 8)))
    strategy = Evolutionary(problem, seed=0, population=1, mutation_rate=0.0)
    good, failed = Evolutionary(problem, seed=9).suggest(2)
    strategy.update([trial(problem, failed, 0, float("nan")), trial(problem, good, 1, -1.0)])
    child = problem.assignment(strategy.suggest(1)[0])
    assert (child != problem.assignment(good)).sum() <= 2 < (child != problem.assignment(failed)).sum()


def test_nothing_within_budget_says_what_is_achievable() -> None:
    problem = TOYS["knapsack"].problem.with_budgets({"latency_ms": 2.5})
    with pytest.raises(InfeasibleError, match=r"latency_ms 3 \(budget 2\.5\)"):
        Evolutionary(problem).suggest(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 0}, r"search\.options\.population = 0: input should be greater than or equal to 1"),
        ({"mutation_rate": 2.0}, r"search\.options\.mutation_rate = 2\.0: input should be less than or equal to 1"),
    ],
    ids=["population", "rate"],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_options(Evolutionary, options)
