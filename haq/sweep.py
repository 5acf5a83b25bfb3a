"""`haq sweep`: a grid of searches through Ray Tune, one run folder each, one comparison at the end."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from haq.config import one_line
from haq.errors import InfeasibleError, InputError
from haq.experiment import Experiment
from haq.files import read_toml, write_json
from haq.report import compare_runs
from haq.run import run_experiment

_TUNE = "tune"


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


@dataclass(frozen=True)
class SweepRun:
    """One point of the grid: `label` names its folder, `overrides` are what differs from the experiment."""

    label: str
    overrides: tuple[str, ...]


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
        InputError: `options` of a strategy that the sweep does not have, or a point that stands twice.
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
        runs.append(SweepRun(label, (*overrides, f"name={config.name}-{label}")))
    labels = [run.label for run in runs]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"the run {twice[0]} stands twice in the sweep; name each strategy, device and seed once")
    return runs


def run_sweep(
    path: Path, *, out: Path, resume: bool = False, workers: int = 1, note: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """Run all points of a sweep, `workers` at a time, and compare them in `out/compare`.

    Args:
        path: the sweep file.
        out: gets `<label>/` for each run, `sweep.json` and `compare/`.
        resume: go on with a sweep that was stopped: finished runs stay, others go on from their journals.
        workers: how many runs at a time, each in a process of its own.
        note: told how each run ended.

    Returns:
        For each run its label, folder, and scores or the reason why it failed.

    Raises:
        InputError: the sweep or one of its experiments is wrong, or Ray Tune is missing.
    """
    config = load_sweep(path)
    runs, experiment = sweep_runs(config), (path.parent / config.experiment).resolve()
    for run in runs:
        Experiment.load(experiment, overrides=run.overrides).check()
    if out.exists() and any(out.iterdir()) and not resume:
        raise InputError(f"{out}: is not empty; add --resume to go on with its sweep, or name another --out")
    out.mkdir(parents=True, exist_ok=True)
    rows = _tuned(runs, experiment, out.resolve(), workers=workers, resume=resume)
    for row in rows:
        note(f"{row['label']}: {row['error'] or row['verdict']}")
    write_json(out / "sweep.json", {"schema_version": 1, "sweep": config.model_dump(mode="json"), "runs": rows})
    done = [out / row["label"] for row in rows if not row["error"]]
    if len(done) > 1:
        compare_runs(done, out / "compare")
    return rows


def run_point(point: dict[str, Any]) -> dict[str, Any]:
    """One run of a sweep, or the rest of it; its failure is in the row, so that the others go on."""
    folder = Path(point["folder"])
    row = {"label": folder.name, "verdict": "", "error": ""}
    try:
        if not (folder / "result.json").exists():
            experiment = Experiment.load(point["experiment"], overrides=point["overrides"])
            run_experiment(experiment, out=folder, resume=folder.exists(), command=f"haq sweep: {folder.name}")
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (InputError, InfeasibleError) as error:
        return {**row, "error": " ".join(str(error).split())}
    return {**row, "verdict": result["verdict"], "test_score": result["answer"]["test_score"]}


def _tuned(
    runs: Sequence[SweepRun], experiment: Path, out: Path, *, workers: int, resume: bool
) -> list[dict[str, Any]]:
    """Every run as a trial of Ray Tune. Tune knows which trials ended; each run's journal knows how far it came."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    try:
        import ray
        from ray import tune
    except ImportError as error:
        raise InputError("haq sweep needs Ray Tune: pip install 'haq[ray]'") from error
    points = [
        {"folder": str(out / run.label), "experiment": str(experiment), "overrides": list(run.overrides)}
        for run in runs
    ]

    def trial(config: dict[str, Any]) -> None:
        tune.report({"row": run_point(config["point"])})

    started = not ray.is_initialized()
    if started:
        ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        trainable = tune.with_resources(trial, {"cpu": 1})
        space = {"point": tune.grid_search(points)}
        place = out / _TUNE / "sweep"
        if resume and tune.Tuner.can_restore(str(place)):
            tuner = tune.Tuner.restore(str(place), trainable, param_space=space, restart_errored=True)
        else:
            settings = tune.RunConfig(name="sweep", storage_path=str(out / _TUNE), verbose=0)
            tuner = tune.Tuner(trainable, param_space=space, run_config=settings)
        results = tuner.fit()
        rows = {}
        for result in (results[number] for number in range(len(results))):
            if result.error is not None:
                name = Path(result.config["point"]["folder"]).name if result.config else "?"
                last = str(result.error).strip().splitlines()[-1]
                rows[name] = {"label": name, "verdict": "", "error": last}
            else:
                row = (result.metrics or {})["row"]
                rows[row["label"]] = row
    finally:
        if started:
            ray.shutdown()
    missing = {"verdict": "", "error": "was not run"}
    return [rows.get(run.label, {"label": run.label, **missing}) for run in runs]


def _strategy(name: str, options: dict[str, Any]) -> tuple[str, ...]:
    return (f"search.strategy={_toml(name)}", f"search.options={_toml(options)}")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
