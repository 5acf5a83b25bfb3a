"""The adaptive integer program: its regression against textbook formulas, its searches against ground truth."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from haq.bench import load_ground_truth
from haq.bench.regret import Contender, cases, search
from haq.experiment.experiment import Experiment
from haq.problem.problem import Problem
from haq.search import ILP, AdaptiveILP
from haq.search.surrogate import Design, Fit
from haq.testing import TOYS, chain_document
from haq.values.errors import InfeasibleError, InputError
from haq.values.trial import Measurement, Trial

TABLES = Path(__file__).parents[2] / "benchmarks" / "ground_truth"


@pytest.fixture
def problem():
    return Problem.from_doc(chain_document(3, bits=(2, 4)))


def explicit(design, problem):
    """Prior covariance `[F, F]` of all coefficients, one by one, and a function that gives the features of rows."""
    sizes = problem.tables.sizes
    blocks = [*design.layer, *(np.kron(design.shared[g], design.shared[h]) for g, h in design.pairs)]
    covariance = np.zeros((sum(map(len, blocks)),) * 2)
    at = 0
    for block in blocks:
        covariance[at : at + len(block), at : at + len(block)] = block
        at += len(block)

    def features(rows):
        eyes = [np.eye(size)[rows[:, g]] for g, size in enumerate(sizes)]
        both = [np.einsum("na,nb->nab", eyes[g], eyes[h]).reshape(len(rows), -1) for g, h in design.pairs]
        return np.concatenate([*eyes, *both], axis=1)

    return covariance, features


def test_the_fit_is_bayesian_linear_regression_with_explicit_coefficients(problem):
    design, rng = Design(problem), np.random.default_rng(0)
    rows, others = rng.integers(4, size=(6, 3)), rng.integers(4, size=(5, 3))
    fit = Fit(design, rows, rng.random(6))
    covariance, features = explicit(design, problem)
    seen, new = features(rows), features(others)
    inverse = np.linalg.inv(seen @ covariance @ seen.T + 0.01 * np.eye(6))
    residual = fit.standardized - design.predicted(rows)
    terms = fit.terms()
    got = np.concatenate([terms.unary, *(matrix.ravel() for matrix in terms.pairs)])
    assert got == pytest.approx(covariance @ seen.T @ inverse @ residual)
    posterior = covariance - covariance @ seen.T @ inverse @ seen @ covariance
    assert fit.deviation(others) ** 2 == pytest.approx(np.diag(new @ posterior @ new.T) + 0.01)


def test_draws_from_the_posterior_have_its_mean_and_its_deviation(problem):
    design, rng = Design(problem), np.random.default_rng(0)
    rows, others = rng.integers(4, size=(6, 3)), rng.integers(4, size=(4, 3))
    fit = Fit(design, rows, rng.random(6))
    drawn = np.array([design.values(fit.draw(rng), others) for _ in range(3000)])
    assert drawn.mean(axis=0) == pytest.approx(design.values(fit.terms(), others), abs=0.1)
    assert drawn.var(axis=0) + 0.01 == pytest.approx(fit.deviation(others) ** 2, rel=0.15)


def test_the_prior_is_the_tables_own_prediction_interactions_included():
    document = chain_document(3, bits=(2, 4))
    pair = {"between": ["layer2", "layer0"], "costs": np.arange(16.0).reshape(4, 4).tolist()}
    problem = Problem.from_doc(document | {"interactions": [pair], "ties": [["layer0", "layer1"]]})
    rows = np.array(list(itertools.product(range(4), repeat=2)))
    design = Design(problem)
    predicted = problem.tables.total("sensitivity", rows)
    ratio = predicted / design.values(design.prior, rows)
    assert ratio == pytest.approx(np.full(16, ratio[0]))


def trial(problem, policy, number, score, **details):
    return Trial(number, "test", policy, problem.costs(policy), Measurement(score, "test", details=details))


def hidden_score(problem, policy):
    """Not what the tables predict: each pair of neighbours at few bits costs extra."""
    row = problem.assignment(policy)
    return 90 - 3 * problem.objective_value(policy) - float(((row[1:] < 2) & (row[:-1] < 2)).sum())


@pytest.mark.parametrize("layers", [4, 8], ids=["listed", "by_integer_program"])
def test_a_killed_search_goes_on_the_same_after_every_trial(layers):
    problem = Problem.from_doc(chain_document(layers, bits=(2, 4, 8)))
    steps = 12 if layers == 4 else 3

    def go_on(strategy, trials):
        while len(trials) < steps:
            (policy,) = strategy.suggest(1)
            assert not problem.violation(policy)
            trials.append(trial(problem, policy, len(trials), hidden_score(problem, policy), loss=0.3))
            strategy.update(trials[-1:])
        return trials

    played = go_on(AdaptiveILP(problem, seed=3, samples=1), [])
    assert len({entry.policy for entry in played}) == steps
    for killed in range(1, steps, 1 if layers == 4 else 2):
        strategy = AdaptiveILP(problem, seed=3, samples=1)
        strategy.update(played[:killed])
        assert go_on(strategy, played[:killed]) == played


def test_the_first_proposal_is_the_exact_optimum_of_the_prediction(problem):
    assert AdaptiveILP(problem).suggest(1) == ILP(problem).suggest(1)


def test_failed_measurements_are_not_repeated_nor_learned(problem):
    strategy = AdaptiveILP(problem)
    for number in range(5):
        (policy,) = strategy.suggest(1)
        strategy.update([trial(problem, policy, number, float("nan"))])
    assert strategy.suggest(3) == ILP(problem).suggest(8)[5:]


@pytest.mark.parametrize("table", ["digits_cnn_ptq", "digits_cnn_bn"])
def test_it_beats_the_order_of_the_prediction_where_the_optimum_is_known(table):
    over = [
        case
        for metric in ("bops", "size_bytes")
        for case in cases(load_ground_truth(TABLES / f"{table}.json"), (0.02, 0.2, 0.7), metric=metric, score="loss")
    ]

    def mean_regret(contender):
        runs = [search(contender, case, seed=0, evaluations=15)["search"] / case.spread("search") for case in over]
        return np.mean(runs, axis=0)[-1]

    adaptive = mean_regret(Contender("adaptive", "adaptive_ilp", {"target": "loss"}))
    assert adaptive < mean_regret(Contender("ilp", "ilp", {}))
    assert adaptive < 0.01


def test_what_it_cannot_learn_is_refused(problem):
    with pytest.raises(InputError, match="objective = 'sensitivity'"):
        AdaptiveILP(problem.with_budgets({}, objective="latency_ms"))
    with pytest.raises(InputError, match="no budget on it"):
        AdaptiveILP(problem.with_budgets({"sensitivity": 1.0}))
    toy = TOYS["knapsack"].problem.with_budgets({"latency_ms": 0.5})
    with pytest.raises(InfeasibleError, match="latency_ms"):
        AdaptiveILP(toy).suggest(1)


def test_what_it_cannot_search_is_refused_before_data_are_loaded() -> None:
    path = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
    overrides = ["search.strategy=adaptive_ilp", "budgets.sensitivity=1.0", "data.name=nowhere"]
    with pytest.raises(InputError, match="'adaptive_ilp' relearns the predicted loss: it needs objective"):
        Experiment.load(path, overrides=overrides).check()
