"""`haq cost`, `evaluate`, `sensitivity` and `solve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from haq.commands.options import (
    EXIT_INFEASIBLE,
    AsJson,
    ExperimentFile,
    NoCache,
    Overrides,
    PolicyFile,
    evaluating,
    experiment_of,
)
from haq.commands.terminal import (
    print_json,
    print_out,
    running,
    sensitivity_table,
    show_cost,
)
from haq.values.errors import InputError


def cost(experiment: ExperimentFile, policy: PolicyFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print what a policy costs: per layer, per switch, and in all."""
    from haq.hardware.costs import cost_report

    with running():
        pieces = experiment_of(experiment, overrides)
        report = cost_report(pieces.network, pieces.cost_model, pieces.load_policy(policy)).to_doc()
    if as_json:
        print_json(report)
        return
    show_cost(report, title=pieces.profile.title)


def evaluate(
    experiment: ExperimentFile,
    policy: PolicyFile,
    overrides: Overrides = None,
    no_cache: NoCache = False,
    engine: Annotated[
        str, typer.Option(help="float: as the search scores it; integer: in integers only, compared with that.")
    ] = "float",
    samples: Annotated[int | None, typer.Option(min=1, help="integer: how many samples, from the start.")] = None,
) -> None:
    """Measure a policy on the search split and print its score and costs as JSON."""
    if engine not in ("float", "integer"):
        raise InputError(f"--engine {engine!r}: unknown; known: float, integer")
    if samples is not None and engine != "integer":
        raise InputError("--samples: is for --engine integer; leave it out, or set evaluator.samples")
    if engine == "integer":
        with running() as bars:
            from haq.commands.export import evaluate_integer

            pieces = experiment_of(experiment, overrides)
            bars.stage("measuring the policy in integers")
            found = evaluate_integer(pieces, policy, samples=samples)
        print_json(found)
        return
    with running() as bars:
        from haq.experiment.workers import open_executor
        from haq.hardware.costs import cost_report

        pieces = experiment_of(experiment, [*(overrides or []), *evaluating(no_cache, None, None)])
        bars.stage("measuring the policy")
        chosen = pieces.load_policy(policy)
        pieces.space.check(chosen)
        costs = cost_report(pieces.network, pieces.cost_model, chosen).to_doc()
        with open_executor(pieces, note=bars.note) as executor:
            executor.submit(chosen)
            _, measurement = executor.next_completed()
        floating = pieces.evaluator("search").float_measurement()
    document = {
        "schema_version": 1,
        "metric": pieces.config.evaluator.metric,
        "split": "search",
        "measurement": measurement.to_doc(),
        "float_score": floating.score,
        "costs": costs["totals"],
        "coverage": costs["coverage"],
        "lower_bounds": costs["lower_bounds"],
    }
    print_json(document)
    if not measurement.ok:
        raise InputError(f"{policy}: the policy could not be measured: {measurement.error}")


def sensitivity(
    experiment: ExperimentFile,
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/<name>-sensitivity.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score how much each layer's formats hurt; write the table and its heat map."""
    with running() as bars:
        from haq.runs.search import write_sensitivity

        pieces = experiment_of(experiment, overrides)
        folder = out or Path("runs") / f"{pieces.config.name}-sensitivity"
        bars.stage(f"sensitivity ({pieces.config.sensitivity.metric})")
        table = write_sensitivity(pieces, folder, progress=bars.step)
    if as_json:
        print_json({"folder": str(folder), "metric": table.metric, "rows": table.rows()})
        return
    shown = sensitivity_table(table.rows(), title=f"predicted loss increase ({table.metric})")
    print_out(shown, f"table: {folder / 'sensitivity.csv'}\nheat map: {folder / 'sensitivity.png'}")


def solve(
    problem: Annotated[Path, typer.Argument(metavar="PROBLEM", help="Problem file (JSON); needs no model.")],
    top: Annotated[int, typer.Option(min=1, help="How many solutions, best first.")] = 1,
    gap: Annotated[float, typer.Option(min=0.0, help="Relative gap at which to stop; 0: the exact optimum.")] = 0.0,
    time_limit: Annotated[float | None, typer.Option(min=0.0, help="Seconds.")] = None,
    solver: Annotated[str, typer.Option(help="auto, highs or cbc.")] = "auto",
) -> None:
    """Solve a problem file to the optimum and print one JSON document."""
    from haq.problem.problem import load_problem
    from haq.solve.solve import solve_document

    solution = solve_document(load_problem(problem), top=top, gap=gap, time_limit=time_limit, solver=solver)
    print_json(solution)
    if solution["status"] == "infeasible":
        raise typer.Exit(EXIT_INFEASIBLE)
