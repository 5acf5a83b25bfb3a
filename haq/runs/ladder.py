"""The ladder of fidelities: finalists climb it by successive halving; how far its rungs agree is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, count
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from haq.experiment.experiment import Experiment, Progress
from haq.experiment.workers import open_executor
from haq.problem.problem import Problem
from haq.search import RandomSearch
from haq.search.journal import Journal
from haq.search.loop import Executor
from haq.training.fine_tuning import Failure
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.rung import Rung
from haq.values.trial import Measurement, Trial

RUNGS = ("ptq", "bn", "shared", "qat")
"""What `haq ladder` compares where the experiment names no ladder."""
_RESAMPLES = 500
_LEAST_POLICIES = 3


def climb(
    experiment: Experiment,
    problem: Problem,
    trials: Sequence[Trial],
    journal: Journal,
    *,
    on_measured: Callable[[Trial, str], None] = lambda trial, rung: None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Trial]:
    """Send the best trials of the first rung up the others (successive halving: Jamieson and Talwalkar 2016).

    From rung to rung the best of those within budget go on, one in `evaluator.reduction`, at least one, and always the
    best policy of each source: the baselines are measured as the answer is.

    Args:
        experiment: names the rungs.
        problem: tells which trials are within budget.
        trials: measured on the first rung.
        journal: of the upper rungs' measurements; what stands there is not measured again.
        on_measured: called with each trial and its rung as it is measured.
        note: told of the cache.

    Returns:
        The trials that reached the last rung, measured there.
    """
    known = {(t.policy.key, t.measurement.fidelity): t.measurement for t in journal.trials}
    alive = [trial for trial in trials if trial.measurement.ok and not problem.violation(trial.policy)]
    for rung in experiment.config.evaluator.ladder[1:]:
        climbing = _promoted(alive, experiment.config.evaluator.reduction)
        fidelity = experiment.evaluator("search", rung=rung).fidelity
        trial_of = {trial.policy: trial for trial in reversed(climbing)}
        waiting = [
            policy for policy in dict.fromkeys(t.policy for t in climbing) if (policy.key, fidelity) not in known
        ]

        def keep(
            policy: Policy, measurement: Measurement, rung: str = rung, of: Mapping[Policy, Trial] = trial_of
        ) -> None:
            trial = replace(of[policy], measurement=measurement)
            journal.append(replace(trial, number=len(journal.trials)))
            on_measured(trial, rung)

        if waiting:
            with open_executor(experiment, rung=rung, note=note) as executor:
                found = measure_all(executor, waiting, keep)
            known |= {(policy.key, fidelity): measurement for policy, measurement in found.items()}
        measured = [replace(trial, measurement=known[trial.policy.key, fidelity]) for trial in climbing]
        alive = [trial for trial in measured if trial.measurement.ok]
    return alive


def measure_all(
    executor: Executor, policies: Sequence[Policy], on_done: Callable[[Policy, Measurement], None]
) -> dict[Policy, Measurement]:
    """The measurements of distinct policies; `on_done` gets each as it is made, on Ctrl-C what is made by then."""
    found: dict[Policy, Measurement] = {}

    def take(policy: Policy, measurement: Measurement) -> None:
        found[policy] = measurement
        on_done(policy, measurement)

    for policy in policies:
        executor.submit(policy)
    try:
        while len(found) < len(policies):
            take(*executor.next_completed())
    except KeyboardInterrupt:
        for done in executor.finished():
            take(*done)
        raise
    return found


def _promoted(trials: Sequence[Trial], reduction: float) -> list[Trial]:
    """The best policies, once each source's best is among them; ties go to the earlier trial."""
    ranked = sorted(trials, key=lambda trial: (-trial.measurement.score, trial.number))
    distinct = list(dict.fromkeys(trial.policy.key for trial in ranked))
    kept = set(distinct[: math.ceil(len(distinct) / reduction)])
    kept |= {next(t.policy.key for t in ranked if t.source == source) for source in {t.source for t in ranked}}
    return [trial for trial in ranked if trial.policy.key in kept]


def compare_rungs(
    experiment: Experiment,
    *,
    policies: int,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure random policies within budget on every rung, and how far the rungs rank them alike.

    Args:
        experiment: names the rungs in `evaluator.ladder`; `RUNGS` where it does not.
        policies: how many.
        progress: called with the measurements done and their number.
        note: told of the cache.

    Returns:
        `rungs` (seconds of a policy, the median, as they were measured at first; seconds spent `once`, unknown with
        workers, each of which does that; scores; failures) and `pairs` (Spearman's and
        Kendall's correlation, each with the 95 % interval of a bootstrap over the policies).

    Raises:
        InputError: too few policies to rank.
    """
    if policies < _LEAST_POLICIES:
        raise InputError(f"--policies {policies}: give at least {_LEAST_POLICIES} to rank")
    drawn = RandomSearch(experiment.problem(None), seed=experiment.config.seed).suggest(policies)
    if len(drawn) < _LEAST_POLICIES:
        raise InputError(f"the space has {len(drawn)} policies within budget; raise the budget or allow more formats")
    names = experiment.config.evaluator.ladder or RUNGS
    rungs, total = [], len(names) * len(drawn)
    for index, name in enumerate(names):
        once = _prepared(experiment, name)
        done = count(index * len(drawn) + 1)

        def on_done(policy: Policy, measurement: Measurement, done: Iterator[int] = done) -> None:
            if progress is not None:
                progress(next(done), total)

        with open_executor(experiment, rung=name, note=note) as executor:
            found = measure_all(executor, drawn, on_done)
        rungs.append(_rung(name, once, [found[policy] for policy in drawn]))
    return {
        "schema_version": 1,
        "experiment": experiment.config.name,
        "metric": experiment.config.evaluator.metric,
        "policies": [policy.to_doc() for policy in drawn],
        "rungs": rungs,
        "pairs": [_pair(a, b, experiment.config.seed) for a, b in combinations(rungs, 2)],
    }


def _prepared(experiment: Experiment, rung: str) -> float | None:
    """Do what a rung does once, and return how long that took; `None` where workers do it."""
    if experiment.config.executor.kind != "local":
        return None
    start = time.perf_counter()
    qat = experiment.config.evaluator.qat
    if Rung(rung).joint or (Rung(rung).tunes and qat is not None and qat.start == "shared"):
        shared = experiment.fine_tuner.shared()
        if isinstance(shared, Failure):
            raise InputError(f"evaluator.qat: joint training failed: {shared.reason}")
    return time.perf_counter() - start


def _rung(name: str, once: float | None, measured: Sequence[Measurement]) -> dict[str, Any]:
    return {
        "name": name,
        "seconds": float(np.median([one.seconds for one in measured])),
        "once": once,
        "scores": [one.score if one.ok else None for one in measured],
        "failed": sum(not one.ok for one in measured),
    }


def _pair(one: dict[str, Any], other: dict[str, Any], seed: int) -> dict[str, Any]:
    both = [pair for pair in zip(one["scores"], other["scores"], strict=True) if None not in pair]
    scores = np.array(both, dtype=float).reshape(-1, 2)
    found = {
        "spearman": rank_correlation(scores, spearmanr, seed),
        "kendall": rank_correlation(scores, kendalltau, seed),
    }
    return {"rungs": [one["name"], other["name"]], "policies": len(both), **found}


def rank_correlation(
    scores: np.ndarray, statistic: Callable[..., Any], seed: int, *, resamples: int = _RESAMPLES
) -> dict[str, float | None]:
    """A rank correlation with its 95 % bootstrap interval, percentiles over resampled rows.

    Args:
        scores: `[policies, 2]`.
        statistic: of two columns, whose first result is the correlation.
        seed: of the resampling.
        resamples: how many; those without a spread in both columns are left out.

    Returns:
        `value`, `low` and `high`; `None` where a column has no spread.
    """
    if not _spreads(scores):
        return {"value": None, "low": None, "high": None}
    rng = np.random.default_rng(seed)
    drawn = (scores[rng.integers(len(scores), size=len(scores))] for _ in range(resamples))
    found = [float(statistic(sample[:, 0], sample[:, 1])[0]) for sample in drawn if _spreads(sample)]
    low, high = np.percentile(found, [2.5, 97.5])
    return {"value": float(statistic(scores[:, 0], scores[:, 1])[0]), "low": float(low), "high": float(high)}


def _spreads(scores: np.ndarray) -> bool:
    return len(scores) > 1 and all(len(np.unique(scores[:, column])) > 1 for column in (0, 1))
