"""Arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from haq.values.errors import InputError

if TYPE_CHECKING:
    from haq.experiment.experiment import Experiment

EXIT_OTHER, EXIT_INPUT, EXIT_INFEASIBLE, EXIT_CHECK, EXIT_INTERRUPTED = 1, 2, 3, 4, 130

ExperimentFile = Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="Experiment file (TOML).")]
PolicyFile = Annotated[
    Path, typer.Option("--policy", help="Policy file (JSON): a run's policy.json, or a file of another tool.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the experiment, e.g. seed=1 or budgets.latency_ms='50%'; may be repeated.",
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Measure everything; keep and use no measurement.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Evaluate N policies in parallel, each in a process of its own (Ray).")
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Use the workers of this Ray cluster; or: auto.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def experiment_of(path: Path, overrides: list[str] | None) -> Experiment:
    """The experiment in a file, with `--set` applied."""
    from haq.experiment.experiment import Experiment

    return Experiment.load(path, overrides=overrides or [])


def experiment_or(experiment: Path | None, overrides: list[str] | None, stored: Callable[[], Experiment]) -> Experiment:
    """The experiment of the file that is given, else the one that a run, a policy or a family says it is from.

    Raises:
        InputError: overrides without a file; see `Experiment.recorded`.
    """
    if experiment is not None:
        return experiment_of(experiment, overrides)
    if overrides:
        raise InputError("--set: overrides keys of an experiment file; add --experiment")
    return stored()


def evaluating(no_cache: bool, workers: int | None, ray_address: str | None) -> list[str]:
    """The overrides that say who evaluates."""
    options = ["cache.enabled=false"] * no_cache
    for key, value in (("workers", workers), ("address", ray_address)):
        if value is not None:
            options += ["executor.kind=ray", f"executor.{key}={value}"]
    return options
