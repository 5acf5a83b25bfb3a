"""`haq search`: run an experiment and write its run folder."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from haq.edges.cells import csv_text
from haq.edges.documents import remove_leftovers, write_json, write_text
from haq.edges.progress import Reporter, Silent, Stages
from haq.evaluate import SplitEvaluator
from haq.experiment.experiment import Experiment, Progress
from haq.experiment.workers import open_executor, worker_count
from haq.hardware import profile_warnings
from haq.problem.problem import Problem
from haq.report import write_heat_map, write_plots, write_report
from haq.runs.doubts import float_doubts
from haq.runs.ladder import climb
from haq.runs.remeasure import Confirmation, check_remeasure
from haq.runs.result import Leader, policy_document, result_document, trial_row, versions
from haq.search import AccuracyDropSearch, Greedy, SearchStrategy, make_strategy, run_search, uniform_policies
from haq.search.journal import Journal, holds_trials, setup_of
from haq.sensitivity import SensitivityTable
from haq.solve.infeasible import infeasible
from haq.solve.settings import SolverSettings
from haq.solve.solve import Solution, solve
from haq.values.errors import InfeasibleError, InputError
from haq.values.policy import Policy
from haq.values.trial import Trial

JOURNAL = "trials.jsonl"
LADDER = "ladder.jsonl"
"""What finalists measured on the upper rungs of the ladder."""
_MAX_REFERENCES = 9
"""Uniform policies that are measured: those within budget first."""


def run_folder(name: str, out: Path | None, *, resume: bool) -> Path:
    """Where a run goes: `out`, else `runs/<name>`, or `runs/<name>-2`, ... where that is taken.

    With `resume`, the newest that is there.

    Raises:
        InputError: `out` is not a folder, or holds a run and is not to be resumed, or there is nothing to resume.
    """
    if out is not None:
        return _checked_folder(out, resume=resume)
    newest, candidate, number = None, Path("runs") / name, 1
    while candidate.exists():
        number += 1
        newest, candidate = candidate, Path("runs") / f"{name}-{number}"
    if not resume:
        return candidate
    if newest is None:
        raise InputError(f"{candidate}: no run to resume; start it without --resume, or name its folder with --out")
    return newest


def _checked_folder(out: Path, *, resume: bool) -> Path:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder with --out")
    if resume and not out.exists():
        raise InputError(f"{out}: no run to resume; start it without --resume")
    if not resume and holds_trials(out / JOURNAL):
        raise InputError(f"{out}: a run already exists; add --resume to go on, or name another --out")
    if not resume and any((out / name).exists() for name in ("policy.json", "result.json")):
        raise InputError(f"{out}: results already exist, which this run would overwrite; name another --out")
    return out


def run_experiment(
    experiment: Experiment,
    *,
    out: Path | None = None,
    resume: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
    on_proposal: Callable[[float | None], None] = lambda score: None,
) -> tuple[Path, dict[str, Any]]:
    """Search, measure, and write the run folder.

    Args:
        experiment: what to run.
        out: the run folder; see `run_folder` for the default.
        resume: go on with a killed run.
        command: how the user started it, for the provenance.
        reporter: shows progress.
        on_proposal: called with the score of each policy that the strategy proposed, replayed ones too; `None` where it
            could not be measured.

    Returns:
        The run folder and the content of its `result.json`.

    Raises:
        InputError: something the user gave cannot be used.
        InfeasibleError: no policy meets the budgets.
    """
    stages = Stages(reporter or Silent())
    folder = run_folder(experiment.config.name, out, resume=resume)
    with stages("trace", "tracing the model"):
        experiment.check()
        for warning in profile_warnings(experiment.profile, experiment.network):
            stages.reporter.note(f"warning: {warning}")
        if experiment.config.search.remeasure:
            check_remeasure(experiment)
        _solved(experiment, experiment.problem(None))
    with stages("calibrate", "calibrating"):
        for split in ("search", "test"):
            _check_float(experiment.evaluator(split), split)
        for doubt in float_doubts(experiment.evaluator("search")):
            stages.reporter.note(f"warning: {doubt}")
    parallel = _parallel(experiment, folder / JOURNAL, resume=resume)
    with Journal.open(folder / JOURNAL, _setup(experiment, parallel), resume=resume) as journal:
        remove_leftovers(folder)
        return folder, _run(experiment, folder, journal, stages, on_proposal, command=command, parallel=parallel)


def _run(
    experiment: Experiment,
    folder: Path,
    journal: Journal,
    stages: Stages,
    on_proposal: Callable[[float | None], None],
    *,
    command: str,
    parallel: int,
) -> dict[str, Any]:
    config, show = experiment.config, stages.reporter
    evaluator = experiment.evaluator("search")
    with stages("sensitivity", f"sensitivity ({config.sensitivity.metric})"):
        sensitivity = experiment.sensitivity(file=folder / "sensitivity.json", progress=show.step)
        interactions = experiment.interactions(file=folder / "interactions.json", progress=show.step)
    with stages("solve", "solving"):
        problem = experiment.problem(sensitivity, interactions)
        solution = _solved(experiment, problem)
    confirmation = None
    if config.search.remeasure:
        with stages("remeasure", "timing the best policies end to end"):
            confirmation = Confirmation.of(experiment, problem, folder, show, resumed=bool(journal.trials))
            problem = confirmation.problem
            solution = _solved(experiment, problem)
    floor = experiment.score_floor(evaluator.float_score())
    strategy = build_strategy(experiment, problem, floor=floor)
    fixed = _fixed(problem)
    with stages("evaluate", "measuring policies"):
        expected = len(fixed) + config.search.max_trials
        shown, leader = count(1), Leader(problem, floor)

        def on_trial(trial: Trial) -> None:
            done = next(shown)
            show.step(done, max(expected, done))
            show.note(_trial_line(trial, problem) + leader.mark(trial))
            if trial.number >= len(fixed):
                on_proposal(trial.measurement.score if trial.measurement.ok else None)

        with open_executor(experiment, note=show.note) as executor:
            run_search(
                problem,
                strategy,
                executor,
                name=config.search.strategy,
                max_trials=config.search.max_trials,
                journal=journal,
                parallel=parallel,
                fixed=fixed,
                on_trial=on_trial,
            )
    finalists = _climbed(experiment, folder, problem, journal, stages, parallel=parallel)
    with stages("test", "scoring the answer on the test split"):
        if confirmation is not None:
            finalists = confirmation.kept(finalists)
        result = result_document(experiment, problem, solution, finalists, floor=floor)
        result["trials"] = len(journal.trials)
        if confirmation is not None:
            confirmation.add_to(result)
    with stages("report", "writing the report"):
        result["seconds"], result["command"] = dict(stages.seconds), command
        _write(experiment, folder, result, problem, sensitivity, journal.trials)
    return result


def _climbed(
    experiment: Experiment, folder: Path, problem: Problem, journal: Journal, stages: Stages, *, parallel: int
) -> list[Trial]:
    """The trials to choose from: those that climbed the ladder, or all of them where there is none."""
    if not experiment.config.evaluator.ladder:
        return journal.trials

    def on_measured(trial: Trial, rung: str) -> None:
        stages.reporter.note(f"{rung:8s}{_trial_line(trial, problem)}")

    with (
        stages("ladder", "measuring finalists"),
        Journal.open(folder / LADDER, _setup(experiment, parallel), resume=True) as upper,
    ):
        return climb(experiment, problem, journal.trials, upper, on_measured=on_measured, note=stages.reporter.note)


def _parallel(experiment: Experiment, journal: Path, *, resume: bool) -> int:
    """How many proposals may be open; a resumed run keeps to what it began with, whatever its workers are now."""
    begun = setup_of(journal).get("parallel") if resume else None
    known = begun if isinstance(begun, int) and begun > 0 else None
    return experiment.config.search.parallel or known or worker_count(experiment.config)


def _check_float(evaluator: SplitEvaluator, split: str) -> None:
    try:
        error = evaluator.float_measurement().error
    except InputError as failure:
        raise InputError(f"{split} split: {failure}") from failure
    if error:
        raise InputError(f"{split} split: the float model cannot be scored: {error}; check model, data and metric")


def build_strategy(experiment: Experiment, problem: Problem, *, floor: float | None) -> SearchStrategy:
    """The strategy that the experiment names; with a `floor` of the score, the bisection that keeps to it."""
    config = experiment.config
    if floor is not None:
        return AccuracyDropSearch(problem, floor=floor, **AccuracyDropSearch.own_options(config.search.options))

    def read(source: str, count: int) -> list[Policy]:
        policies = experiment.policies_in(source)[:count]
        return [problem.repair(problem.nearest(policy)) for policy in policies]

    return make_strategy(
        config.search.strategy,
        problem,
        seed=config.seed,
        options=config.search.options,
        read=read,
        model=lambda: experiment.mixed_model(problem),
    )


def _solved(experiment: Experiment, problem: Problem) -> Solution:
    """The exact solution of the predicted problem: its bound is reported whatever the strategy.

    Raises:
        InfeasibleError: no policy meets the budgets; says the least achievable values.
    """
    solving = SolverSettings.of(experiment.config.search.options)
    solution = solve(problem, **solving.keywords)
    if solution.status == "infeasible":
        raise infeasible(problem, solving, device=experiment.profile.name)
    return solution


def _setup(experiment: Experiment, parallel: int) -> dict[str, Any]:
    """What the trials of a run depend on."""
    return {
        "config": experiment.config.model_dump(mode="json", exclude={"threads", "cache", "executor"}),
        "parallel": parallel,
        "hashes": experiment.hashes,
        "profile": experiment.profile.digest,
        "haq": versions()["haq"],
    }


def _fixed(problem: Problem) -> list[tuple[str, Policy]]:
    """The policies that are always measured: uniform ones and greedy's."""
    uniform = sorted(uniform_policies(problem), key=lambda policy: bool(problem.violation(policy)))
    fixed = [("uniform", policy) for policy in uniform[:_MAX_REFERENCES]]
    try:
        return fixed + [("greedy", policy) for policy in Greedy(problem, seed=0).suggest(1)]
    except InfeasibleError:
        return fixed


def _trial_line(trial: Trial, problem: Problem) -> str:
    keys = dict.fromkeys((problem.objective, *problem.budgets))
    costs = "  ".join(f"{key} {trial.costs[key]:.4g}" for key in keys)
    over = "  over budget" if problem.violation(trial.policy) else ""
    score = f"{trial.measurement.score:.4g}" if trial.measurement.ok else f"failed: {trial.measurement.error}"
    return f"{trial.number:4d}  {trial.source:8s}  score {score}  {costs}{over}"


def _write(
    experiment: Experiment,
    folder: Path,
    result: dict[str, Any],
    problem: Problem,
    sensitivity: SensitivityTable,
    trials: list[Trial],
) -> None:
    write_json(folder / "problem.json", problem.to_doc())
    write_text(folder / "sensitivity.csv", csv_text(sensitivity.rows()))
    write_text(folder / "trials.csv", csv_text([trial_row(trial) for trial in trials]))
    write_json(folder / "policy.json", policy_document(experiment, result, command=result["command"]))
    write_json(folder / "result.json", result)
    write_plots(folder)
    write_report(folder)


def write_sensitivity(experiment: Experiment, folder: Path, *, progress: Progress | None = None) -> SensitivityTable:
    """`haq sensitivity`: the table as JSON and CSV and its heat map, into `folder`.

    Raises:
        InputError: the experiment is wrong, or the folder cannot be written, or holds the table of another setup.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder with --out")
    experiment.check()
    table = experiment.sensitivity(file=folder / "sensitivity.json", progress=progress)
    write_text(folder / "sensitivity.csv", csv_text(table.rows()))
    write_heat_map(folder / "sensitivity.csv", folder / "sensitivity.png")
    return table
