"""`haq search`, `sweep`, `ladder` and `compare`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from haq.commands.options import (
    AsJson,
    ExperimentFile,
    NoCache,
    Overrides,
    RayAddress,
    Workers,
    evaluating,
    experiment_of,
)
from haq.commands.terminal import (
    new_table,
    number_text,
    print_json,
    print_out,
    running,
    show_front,
    show_result,
)
from haq.values.errors import InputError


def search(
    experiment: Annotated[
        Path | None, typer.Argument(metavar="[EXPERIMENT]", help="Experiment file (TOML); or --example.")
    ] = None,
    example: Annotated[
        str | None, typer.Option(metavar="NAME", help="An experiment that comes with haq, such as quickstart.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/<name of the experiment>.")] = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    no_cache: NoCache = False,
    workers: Workers = None,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Search the best policy of an experiment, measure it, and write the run folder: policy, report, plots, trials."""
    command = shlex.join(["haq", *sys.argv[1:]])
    options = evaluating(no_cache, workers, ray_address)
    with running() as bars:
        from haq.runs.front import points, run_front
        from haq.runs.search import run_experiment

        pieces = experiment_of(_file(experiment, example), [*(overrides or []), *options])
        several = len(points(pieces.config)) > 1
        run = run_front if several else run_experiment
        folder, result = run(pieces, out=out, resume=resume, command=command, reporter=bars)
    if as_json:
        print_json({"folder": str(folder), **result})
        return
    (show_front if several else show_result)(folder, result)


def _file(experiment: Path | None, example: str | None) -> Path:
    """The experiment that is meant: the user's file, or one that comes with the package."""
    from haq.experiment.examples import example_path

    if experiment is not None and example is not None:
        raise InputError(f"--example {example}: leave it out, or the file {experiment}")
    if experiment is not None:
        return experiment
    if example is None:
        raise InputError("haq search: give an experiment file, or --example quickstart; haq init writes one")
    return example_path(example)


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", help="Sweep file (TOML).")],
    out: Annotated[Path, typer.Option(help="Folder: one run folder for each point of the grid, and compare/.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep that was stopped.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="How many runs at a time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Run a grid of searches (strategies, devices, budgets, seeds) through Ray Tune and compare them."""
    with running() as bars:
        from haq.runs.sweep import run_sweep

        bars.stage("sweeping")
        rows = run_sweep(file, out=out, resume=resume, workers=workers, note=bars.note)
    if as_json:
        print_json({"folder": str(out), "runs": rows})
        return
    failed, stopped = sum(bool(row["error"]) for row in rows), sum("stopped_after" in row for row in rows)
    early = f", {stopped} stopped early" if stopped else ""
    print_out(f"{len(rows) - failed - stopped} runs done{early}, {failed} failed")
    if (page := out / "compare" / "compare.html").exists():
        print_out(f"comparison: {page}")


def ladder(
    experiment: ExperimentFile,
    policies: Annotated[int, typer.Option(min=1, help="How many random policies within budget to measure.")] = 20,
    overrides: Overrides = None,
    no_cache: NoCache = False,
    workers: Workers = None,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Measure random policies on each rung of the ladder: do cheap and expensive rungs rank policies alike?"""
    with running() as bars:
        from haq.runs.ladder import compare_rungs

        pieces = experiment_of(experiment, [*(overrides or []), *evaluating(no_cache, workers, ray_address)])
        pieces.check()
        bars.stage("measuring policies on each rung")
        document = compare_rungs(pieces, policies=policies, progress=bars.step, note=bars.note)
    if as_json:
        print_json(document)
        return
    rungs = new_table("rung", "seconds a policy", "seconds once", "mean score", "failed")
    for rung in document["rungs"]:
        scores = [score for score in rung["scores"] if score is not None]
        mean = sum(scores) / len(scores) if scores else None
        rungs.add_row(rung["name"], *map(number_text, (rung["seconds"], rung["once"], mean, rung["failed"])))
    pairs = new_table("rungs", "policies", "Spearman", "95 %", "Kendall", "95 %")
    for pair in document["pairs"]:
        columns = []
        for found in (pair["spearman"], pair["kendall"]):
            columns += [number_text(found["value"]), f"{number_text(found['low'])} to {number_text(found['high'])}"]
        pairs.add_row(" / ".join(pair["rungs"]), str(pair["policies"]), *columns)
    print_out(rungs, pairs)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders of haq search.")],
    out: Annotated[Path, typer.Option(help="Folder for the table, the plots and the page.")],
    as_json: AsJson = False,
) -> None:
    """Overlay runs: scores, costs, fronts, bits per layer, convergence."""
    from haq.report import compare_runs

    rows = compare_runs(runs, out)
    if as_json:
        print_json({"folder": str(out), "runs": rows})
        return
    table = new_table("", *(str(row["run"]) for row in rows))
    for key in list(rows[0])[1:]:
        values = (row[key] for row in rows)
        table.add_row(key, *(number_text(v) if isinstance(v, float | int) else str(v or "–") for v in values))
    print_out(table, f"page: {out / 'compare.html'}")
