"""Who goes on from rung to rung, without a model: made-up scores and a made-up second rung."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from haq.execute import LocalExecutor
from haq.runs import ladder
from haq.search.journal import Journal
from haq.testing import TOYS
from haq.values.trial import Measurement, Trial

PROBLEM = TOYS["knapsack"].problem
ROWS = [
    row for row in map(np.array, itertools.product(range(3), repeat=3)) if not PROBLEM.violation(PROBLEM.policy(row))
]


def trials(scores: list[float], *, uniform: int) -> list[Trial]:
    """Distinct policies within budget with these scores; that of number `uniform` is of another source."""
    found = []
    for number, (row, score) in enumerate(zip(ROWS, scores, strict=False)):
        policy, source = PROBLEM.policy(row), "uniform" if number == uniform else "ilp"
        found.append(Trial(number, source, policy, PROBLEM.costs(policy), Measurement(score, "ptq")))
    return found


@pytest.mark.parametrize(("reduction", "count"), [(3.0, 3), (2.0, 4), (7.0, 1), (1.5, 5)])
def test_one_in_so_many_goes_on_rounded_up_and_each_sources_best(tmp_path, monkeypatch, reduction, count):
    asked = []

    def measure(policy):
        asked.append(policy)
        return Measurement(50.0 - len(asked), "bn")

    @contextmanager
    def executor(experiment, *, rung, note):
        yield LocalExecutor(measure)

    monkeypatch.setattr(ladder, "open_executor", executor)
    evaluator = SimpleNamespace(ladder=("ptq", "bn"), reduction=reduction)
    experiment = SimpleNamespace(
        config=SimpleNamespace(evaluator=evaluator), evaluator=lambda split, rung: SimpleNamespace(fidelity=rung)
    )
    scores = [10.0, 70.0, 30.0, 60.0, 20.0, 50.0, 40.0]
    first = trials(scores, uniform=0)
    assert len(first) == 7
    with Journal.create(tmp_path / "ladder.jsonl", {}) as journal:
        last = ladder.climb(experiment, PROBLEM, first, journal)
    best = sorted(first, key=lambda trial: -trial.measurement.score)[:count]
    assert {trial.policy for trial in last} == {trial.policy for trial in best} | {first[0].policy}
    assert set(asked) == {trial.policy for trial in last}
    assert all(trial.measurement.fidelity == "bn" for trial in last)


def test_the_interval_of_a_correlation_holds_95_per_cent_of_the_resamples():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    scores = np.column_stack([np.arange(12.0), np.arange(12.0) + 6 * rng.standard_normal(12)])
    found = ladder.rank_correlation(scores, spearmanr, seed=0, resamples=400)
    rng = np.random.default_rng(0)
    samples = [scores[rng.integers(12, size=12)] for _ in range(400)]
    values = [spearmanr(sample[:, 0], sample[:, 1])[0] for sample in samples]
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
