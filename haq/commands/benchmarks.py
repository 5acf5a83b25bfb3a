"""`haq bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from haq.commands.options import (
    AsJson,
)
from haq.commands.terminal import (
    print_json,
    print_out,
    regret_table,
    running,
)


def bench_regret(
    tables: Annotated[
        list[Path] | None, typer.Argument(metavar="[TABLE]...", help="Ground truths (JSON); default: all shipped.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for table, curves and plots.")] = Path("runs/regret"),
    strategies: Annotated[
        list[str] | None,
        typer.Option("--strategy", metavar="NAME[:OPTION=VALUE,...]", help="Strategy to run; may be repeated."),
    ] = None,
    shares: Annotated[
        list[float] | None,
        typer.Option("--share", help="Budget as the part of all policies within it; may be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 20,
    evaluations: Annotated[int, typer.Option(min=1)] = 100,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Metric that is budgeted; may be repeated. Default: bops and size_bytes."),
    ] = None,
    score: Annotated[str, typer.Option(help="What is searched for: the table's `metric`, or the least `loss`.")] = (
        "metric"
    ),
    answer: Annotated[
        str,
        typer.Option(help="The answer: the best `measured`, or the best by a fit to all that was (`fitted`)."),
    ] = "measured",
    as_json: AsJson = False,
) -> None:
    """Regret of strategies against the number of evaluations, on tables that hold every policy of a network."""
    with running() as bars:
        from haq.commands.bench import bench_regret as run_bench

        bars.stage("running strategies")
        document = run_bench(
            tables or [],
            strategies or [],
            out=out,
            seeds=seeds,
            evaluations=evaluations,
            shares=shares or [],
            metrics=metrics or [],
            score=score,
            answer=answer,
            progress=bars.step,
        )
    if as_json:
        print_json(document)
        return
    for about in dict.fromkeys(document["about"].values()):
        print_out(about)
    for table in document["about"]:
        print_out(regret_table([row for row in document["overall"] if row["table"] == table], title=table))
    print_out(f"table: {out / 'regret.csv'}")
