"""`haq sweep`: a grid of searches, here or through Ray Tune, one run folder each, one comparison at the end."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from haq.edges.documents import read_json, read_toml, write_json
from haq.edges.validation import one_line
from haq.experiment.config import ExperimentConfig
from haq.experiment.experiment import Experiment
from haq.report import compare_runs
from haq.results.read import load_result
from haq.runs.search import run_experiment
from haq.values.errors import InfeasibleError, InputError

_TUNE = "tune"
_COMPARED = ("device.profile=", "budgets=")
"""The axes whose points are problems of their own, whose scores cannot be compared."""


class SchedulerConfig(BaseModel):
    """Which runs are ended early."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    kind: Literal["asha"]
    """Asynchronous successive halving: those whose best proposal is behind that of others for the same problem."""
    grace_evaluations: int = Field(4, ge=1)
    """Evaluations of its strategy's proposals that every run makes."""
    reduction: float = Field(3.0, gt=1)
    """One in so many goes on from there, and again after so many times the evaluations."""


class SweepConfig(BaseModel):
    """A sweep file: the product of all lists that are given, each in place of what the experiment says."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    schema_version: Literal[1] = 1
    name: str = Field("sweep", pattern=r"^\w[\w.-]*$")
    experiment: Path
    """The experiment that is varied, relative to the sweep file."""
    strategies: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    budgets: tuple[dict[str, float | str], ...] = ()
    options: dict[str, dict[str, Any]] = {}
    """Strategy -> its `search.options`."""
    scheduler: SchedulerConfig | None = None
    """Default: every run makes all its evaluations."""


@dataclass(frozen=True)
class SweepRun:
    """One point of the grid.

    Attributes:
        label: names its folder.
        overrides: what differs from the experiment.
        group: the runs of one device and one set of budgets.
    """

    label: str
    overrides: tuple[str, ...]
    group: str


def load_sweep(path: Path) -> SweepConfig:
    """Read a sweep file.

    Raises:
        InputError: one line naming the file, the key, the value and the remedy.
    """
    try:
        return SweepConfig.model_validate_json(json.dumps(read_toml(path), default=str), strict=True)
    except ValidationError as error:
        raise InputError(f"{path}: {one_line(error)}") from error


def sweep_runs(config: SweepConfig) -> list[SweepRun]:
    """The points of the grid, in the order of the file.

    Raises:
        InputError: `options` of a strategy that the sweep does not have, or a point that appears twice.
    """
    if unused := sorted(set(config.options) - set(config.strategies)):
        raise InputError(f"options.{unused[0]}: not among strategies; add it there or remove its options")
    axes: list[list[tuple[str, tuple[str, ...]]]] = [
        [(name, _strategy(name, config.options.get(name, {}))) for name in config.strategies],
        [(Path(name).stem, (f"device.profile={_toml(name)}",)) for name in config.devices],
        [(f"b{number}", (f"budgets={_toml(budget)}",)) for number, budget in enumerate(config.budgets)],
        [(f"s{seed}", (f"seed={seed}",)) for seed in config.seeds],
    ]
    runs = []
    for point in itertools.product(*(axis for axis in axes if axis)):
        label = "-".join(name for name, _ in point) or "only"
        overrides = tuple(override for _, part in point for override in part)
        group = "-".join(name for name, part in point if part[0].startswith(_COMPARED))
        runs.append(SweepRun(label, (*overrides, f"name={config.name}-{label}"), group))
    labels = [run.label for run in runs]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"the run {twice[0]} appears twice in the sweep; name each strategy, device and seed once")
    return runs


def run_sweep(
    path: Path, *, out: Path, resume: bool = False, workers: int = 1, note: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """Run all points of a sweep, `workers` at a time, and compare them in `out/compare`.

    One worker without a scheduler runs in this process and needs no Ray; everything else goes through Ray Tune.

    Args:
        path: the sweep file.
        out: gets `<label>/` for each run, `sweep.json` and `compare/`.
        resume: go on with a sweep that was stopped: finished runs stay, others go on from their journals.
        workers: how many runs at a time, each in a process of its own.
        note: told how each run ended.

    Returns:
        For each run its label and verdict, its test score or the reason why it failed; one that the scheduler ended has
        `stopped_after`, its evaluations, and its best `score` on the search split instead.

    Raises:
        InputError: the sweep or one of its experiments is wrong, or Ray Tune is missing.
    """
    config = load_sweep(path)
    runs, experiment = sweep_runs(config), (path.parent / config.experiment).resolve()
    for run in runs:
        pieces = Experiment.load(experiment, overrides=run.overrides)
        if pieces.config.executor.kind == "ray":
            raise InputError(
                f"{experiment}: executor.kind = 'ray': the searches of a sweep run side by side, and workers of their "
                "own would wait for each other; leave it out, and take haq sweep --workers N"
            )
        if config.scheduler is not None:
            _check_scheduler(config.scheduler, pieces.config, runs)
        pieces.check()
    if out.exists() and any(out.iterdir()) and not resume:
        raise InputError(f"{out}: is not empty; add --resume to go on with its sweep, or name another --out")
    serial = workers == 1 and config.scheduler is None and not (out / _TUNE).exists()
    if not serial:
        _tune()
    document = {"schema_version": 1, "sweep": config.model_dump(mode="json"), "runs": []}
    _check_unchanged(out / "sweep.json", document)
    write_json(out / "sweep.json", document)
    points = [_point(run, experiment, out.resolve()) for run in runs]
    if serial:
        found = {point["label"]: _run_here(point) for point in points}
    else:
        evaluations = pieces.config.search.max_trials
        found = _run_side_by_side(config.scheduler, points, evaluations, out=out, workers=workers, resume=resume)
    rows = [_row(run.label, found.get(run.label, {"error": "was not run"})) for run in runs]
    for row in rows:
        note(f"{row['label']}: {row['error'] or row['verdict']}")
    write_json(out / "sweep.json", {**document, "runs": rows})
    done = [out / row["label"] for row in rows if "test_score" in row]
    if len(done) > 1:
        compare_runs(done, out / "compare")
    return rows


def _check_scheduler(scheduler: SchedulerConfig, experiment: ExperimentConfig, runs: Sequence[SweepRun]) -> None:
    if len({run.group for run in runs}) == len(runs):
        raise InputError(
            "scheduler: no two runs have the same device and budgets, so that none competes; list several strategies "
            "or seeds, or remove [scheduler]"
        )
    if experiment.objective != "sensitivity" or "accuracy_drop" in experiment.budgets:
        raise InputError("scheduler: compares runs by score; needs objective = 'sensitivity', no accuracy_drop")
    if scheduler.grace_evaluations >= experiment.search.max_trials:
        raise InputError(
            f"scheduler.grace_evaluations = {scheduler.grace_evaluations}: no run can be ended early, each makes "
            f"search.max_trials = {experiment.search.max_trials}; take fewer"
        )


def _check_unchanged(file: Path, document: dict[str, Any]) -> None:
    """Refuse to go on with a sweep that was begun with another sweep file."""
    if not file.exists():
        return
    known, now = read_json(file), document["sweep"]
    before = known.get("sweep") if isinstance(known, dict) else None
    if not isinstance(before, dict):
        raise InputError(f"{file}: is no record of a sweep; name another --out")
    if changed := [key for key in now if before.get(key) != now[key]]:
        raise InputError(f"{file}: was begun with another {changed[0]}; resume with that, or name another --out")


def run_point(point: dict[str, Any], on_proposal: Callable[[float | None], None]) -> dict[str, Any]:
    """One run of a sweep, or the rest of it; its failure is in the row, so that the others go on.

    Args:
        point: its label, folder, experiment and overrides.
        on_proposal: see `run_experiment`.
    """
    folder = Path(point["folder"])
    row = {"label": point["label"]}
    try:
        if not (folder / "result.json").exists():
            experiment = Experiment.load(point["experiment"], overrides=point["overrides"])
            command = f"haq sweep: {folder.name}"
            run_experiment(experiment, out=folder, resume=folder.exists(), command=command, on_proposal=on_proposal)
        result = load_result(folder / "result.json")
    except (InputError, InfeasibleError) as error:
        return {**row, "error": " ".join(str(error).split())}
    coverage = result.breakdown.coverage
    done = {**row, "verdict": result.verdict, "test_score": result.answer.test_score}
    return done if coverage is None else {**done, "coverage": coverage.line}


def _run_here(point: dict[str, Any]) -> dict[str, Any]:
    """One run in this process; like Tune, it turns what a user's code raises into the row's error."""
    try:
        return run_point(point, lambda score: None)
    except Exception as error:
        return {"label": point["label"], "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def _run_side_by_side(
    scheduler: SchedulerConfig | None,
    points: Sequence[dict[str, Any]],
    evaluations: int,
    *,
    out: Path,
    workers: int,
    resume: bool,
) -> dict[str, dict[str, Any]]:
    """Through Ray Tune, which knows which runs ended; each run's journal knows how far it came."""
    tune, asha = _tune(), None
    if scheduler is not None:
        grace, reduction = scheduler.grace_evaluations, scheduler.reduction
        asha = tune.GroupedASHA(grace=grace, reduction=reduction, evaluations=evaluations)
    place = out.resolve() / _TUNE
    found: dict[str, dict[str, Any]] = tune.run_trials(
        run_point, points, place=place, workers=workers, resume=resume, asha=asha
    )
    return found


def _tune() -> ModuleType:
    """Ray Tune's part, loaded when it is needed."""
    try:
        from haq.execute import tune
    except ImportError as error:
        raise InputError(
            "workers and schedulers of a sweep need Ray Tune: pip install 'haq[ray]'; without both, the runs "
            "follow each other in this process"
        ) from error
    return tune


def _point(run: SweepRun, experiment: Path, out: Path) -> dict[str, Any]:
    """A run as plain data."""
    return {
        "label": run.label,
        "group": run.group,
        "folder": str(out / run.label),
        "experiment": str(experiment),
        "overrides": list(run.overrides),
    }


def _row(label: str, found: dict[str, Any]) -> dict[str, Any]:
    row = {"label": label, "verdict": "", "error": "", **found}
    if "stopped_after" in found:
        count, score = found["stopped_after"], found["score"]
        row["verdict"] = f"stopped after {count} evaluations, best score {score:.4g}; not in the comparison"
    return row


def _strategy(name: str, options: dict[str, Any]) -> tuple[str, ...]:
    return (f"search.strategy={_toml(name)}", f"search.options={_toml(options)}")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
