"""`haq family`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from haq.commands.options import AsJson, Overrides, experiment_or
from haq.commands.terminal import compact_table, number_text, print_json, print_out, running, unit_row


def family(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_FRONT", help="Folder that haq search wrote.")],
    out: Annotated[Path, typer.Option(help="The family's folder; new or empty.")],
    members: Annotated[int, typer.Option(min=2, help="How many policies, spread over the front.")] = 4,
    by: Annotated[str | None, typer.Option(metavar="METRIC", help="Cost; default: the first budget's.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Train one set of weights jointly for these members.")] = False,
    nested: Annotated[bool, typer.Option("--nested", help="Low-bit weights are leading bits of the highest.")] = False,
    experiment: Annotated[
        Path | None, typer.Option(help="Experiment file; default: the one that the run folder holds.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Pack several policies of a front as one artifact that switches between them."""
    with running() as bars:
        from haq.runs.family import family_experiment, front_policies, make_family

        pieces = experiment_or(experiment, overrides, lambda: family_experiment(source))
        bars.stage("choosing members")
        policies = front_policies(source, pieces, count=members, by=by)
        document = make_family(pieces, policies, out, train=train, nested=nested, source=str(source), reporter=bars)
    if as_json:
        print_json(document)
        return
    rows = document["members"]
    table = compact_table("", *(row["name"] for row in rows), title="cheapest first")
    table.add_row("search score", *(number_text(row["search_score"]) for row in rows))
    if any(row["alone"] is not None for row in rows):
        table.add_row("alone", *(number_text(row["alone"]) for row in rows))
    for metric in rows[0]["costs"]:
        label, texts = unit_row(metric, [row["costs"].get(metric) for row in rows])
        table.add_row(label, *texts)
    sizes = [
        f"{name}: {document[name]['bytes']:,} bytes for all, {document[name]['sum_of_members']:,} as single files"
        for name in ("torch", "onnx")
        if name in document
    ]
    print_out(table, *sizes, f"family: {document['folder']}")


def adapt(
    family: Annotated[Path, typer.Argument(metavar="FAMILY", help="Folder that haq family wrote.")],
    controller: Annotated[str, typer.Option(help="cascade or gate.")] = "cascade",
    confidence: Annotated[str, typer.Option(help="Of a cascade: probability, margin or entropy.")] = "margin",
    accuracy: Annotated[
        float | None,
        typer.Option(help="Least accuracy in per cent; default: half a point below what is promised of the best."),
    ] = None,
    cost: Annotated[
        str | None, typer.Option(help="Or the largest average cost: a number, or a percentage of the best member's.")
    ] = None,
    by: Annotated[str | None, typer.Option(metavar="METRIC", help="The cost; default: bops.")] = None,
    delta: Annotated[float, typer.Option(min=1e-6, max=0.5, help="Probability that the promise fails.")] = 0.05,
    measure: Annotated[int, typer.Option(min=0, help="Time so many samples in ONNX Runtime.")] = 0,
    experiment: Annotated[
        Path | None, typer.Option(help="Experiment file; default: the one that the family holds.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Fit the controller that chooses a family's member for each input, and score it on the test split."""
    with running() as bars:
        from haq.runs.adapt import adapt as fit
        from haq.runs.adapt import stored_experiment

        pieces = experiment_or(experiment, overrides, lambda: stored_experiment(family))
        bars.stage("fitting the controller")
        document = fit(
            pieces,
            family,
            controller=controller,
            confidence=confidence,
            accuracy=accuracy,
            cost=cost,
            by=by,
            delta=delta,
            measure=measure,
        )
    if as_json:
        print_json(document)
        return
    rows, metric = document["rows"], document["by"]
    label, texts = unit_row(metric, [row["costs"][metric] for row in rows])
    table = compact_table("", "accuracy [%]", "error", f"mean {label}", "answers")
    share = [f"{100 * one:.1f} %" for one in document["share"]]
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        answered = share[number] if number < len(share) else ""
        table.add_row(row["name"], number_text(row["accuracy"]), number_text(row["standard_error"]), text, answered)
    print_out(table)
    if "measured" in document:
        times = compact_table("ONNX Runtime, one sample, one thread", "mean [ms]", "p50 [ms]", "p99 [ms]")
        for row in document["measured"]:
            times.add_row(row["name"], *(number_text(row[key]) for key in ("mean_ms", "p50_ms", "p99_ms")))
        print_out(times)
    print_out(f"controller: {document['file']}")
