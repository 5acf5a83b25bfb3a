"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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


def evaluating(no_cache: bool, workers: int | None, ray_address: str | None) -> list[str]:
    """The overrides that say who evaluates."""
    options = ["cache.enabled=false"] * no_cache
    for key, value in (("workers", workers), ("address", ray_address)):
        if value is not None:
            options += ["executor.kind=ray", f"executor.{key}={value}"]
    return options
