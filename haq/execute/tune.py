"""Runs of a sweep as trials of Ray Tune, and ASHA among them. Imports Ray: only `haq sweep` loads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from haq.execute.ray_cluster import RayCluster

OnProposal = Callable[[float | None], None]
"""Told the score of each proposal; `None` where its evaluation failed."""
_SCORES = "scores"
"""What a trial reports beside its row: the best score after each of its proposals, `None` while there is none."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_AIR_NEW_OUTPUT": "0"}


class GroupedASHA(FIFOScheduler):
    """Asynchronous successive halving, Ray's, among the runs of a group only.

    After `grace`, `grace * reduction`, ... evaluations a run is ended when its best score is not among the best one in
    `reduction` of those that came so far before it (Li et al., "A system for massively parallel hyperparameter tuning",
    MLSys 2020). The last evaluation is no such moment: who has made them all ends by itself.

    Trials report all their best scores each time, so that a sweep that is resumed knows the bar that the first one had;
    of a scheduler Tune keeps nothing.

    Args:
        grace: evaluations that every run makes.
        reduction: one in so many goes on.
        evaluations: how many a run makes when nobody ends it; more than `grace`.
    """

    def __init__(self, *, grace: int, reduction: float, evaluations: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._grace, self._reduction, self._last = grace, reduction, evaluations - 1
        self._groups: dict[str, Any] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take up a trial: a new one, or one that the sweep had before it was resumed."""
        self._group(trial).on_trial_add(tune_controller, trial)
        scores = trial.last_result.get(_SCORES, [])
        for count in range(1, len(scores) + 1):
            self.on_trial_result(tune_controller, trial, {_SCORES: scores[:count]})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether `trial` goes on; one that has no score yet does."""
        scores = result.get(_SCORES)
        if not scores or scores[-1] is None:
            return str(TrialScheduler.CONTINUE)
        seen = {"evaluations": len(scores), "score": scores[-1]}
        return str(self._group(trial).on_trial_result(tune_controller, trial, seen))

    def _group(self, trial: Any) -> Any:
        name = trial.config["point"]["group"]
        if name not in self._groups:
            self._groups[name] = ASHAScheduler(
                "evaluations",
                "score",
                "max",
                grace_period=self._grace,
                reduction_factor=self._reduction,
                max_t=self._last,
                stop_last_trials=False,
            )
        return self._groups[name]


def run_trials(
    run: Callable[[dict[str, Any], OnProposal], dict[str, Any]],
    points: Sequence[dict[str, Any]],
    *,
    place: Path,
    workers: int,
    resume: bool,
    asha: GroupedASHA | None = None,
) -> dict[str, dict[str, Any]]:
    """Run every point, `workers` at a time, each in a process of its own.

    Args:
        run: called with a point and whom to tell of each proposal; returns the point's row.
        points: plain data, each with a `label` and the `group` that it competes in.
        place: folder for Tune's own records.
        workers: how many at a time.
        resume: leave alone what ended before, by itself or by the scheduler.
        asha: ends runs early.

    Returns:
        Label -> the row that `run` returned; where it raised, one with the `error`; where the scheduler ended it, one
        with the best `score` and `stopped_after` so many evaluations.

    Raises:
        KeyboardInterrupt: Ctrl-C; what is done is kept.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    scheduled = asha is not None

    def trial(config: dict[str, Any]) -> None:
        scores: list[float | None] = []

        def on_proposal(score: float | None) -> None:
            known = [one for one in (score, *scores[-1:]) if one is not None]
            scores.append(max(known, default=None))
            tune.report({_SCORES: scores.copy()})

        row = run(config["point"], on_proposal if scheduled else lambda score: None)
        tune.report({"row": row, **({_SCORES: scores} if scheduled else {})})

    cluster = RayCluster(ray, None, cpus=workers)
    try:
        trainable = tune.with_resources(trial, {"cpu": 1})
        space = {"point": tune.grid_search(list(points))}
        if resume and tune.Tuner.can_restore(str(place / "sweep")):
            tuner = tune.Tuner.restore(str(place / "sweep"), trainable, param_space=space, restart_errored=True)
        else:
            tuner = tune.Tuner(
                trainable,
                param_space=space,
                tune_config=tune.TuneConfig(scheduler=asha),
                run_config=tune.RunConfig(name="sweep", storage_path=str(place), verbose=0),
            )
        results = tuner.fit()
        rows = [_row(results[number]) for number in range(len(results))]
    finally:
        cluster.close()
    return {row["label"]: row for row in rows}


def _row(result: Any) -> dict[str, Any]:
    metrics = result.metrics or {}
    label = result.config["point"]["label"] if result.config else "?"
    if result.error is not None:
        return {"label": label, "error": str(result.error).strip().splitlines()[-1]}
    if "row" in metrics:
        return dict(metrics["row"])
    if not metrics.get("done"):  # neither returned nor ended by the scheduler: Tune was interrupted
        raise KeyboardInterrupt
    scores = metrics[_SCORES]
    return {"label": label, "stopped_after": len(scores), "score": scores[-1]}
