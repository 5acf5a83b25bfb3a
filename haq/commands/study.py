"""`haq study`."""

from __future__ import annotations

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
from haq.commands.terminal import compact_table, number_text, print_json, print_out, running, unit_row


def study(
    experiment: ExperimentFile,
    out: Annotated[Path, typer.Option(help="Folder for study.json, study.csv and study.png.")],
    precision: Annotated[
        list[str] | None, typer.Option(help="A uniform policy; may be repeated. Default: w8a8, w4a8, w4a4, w2a8.")
    ] = None,
    repair: Annotated[
        list[str] | None,
        typer.Option(
            help="none, bn, equalize, absorb_bias, adaround, gptq, bias_correction or qat; may be repeated. Default: "
            "neither absorb_bias nor adaround."
        ),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            help="Of activations: minmax, percentile, mse, entropy; may be repeated. Default: the experiment's."
        ),
    ] = None,
    overrides: Overrides = None,
    no_cache: NoCache = False,
    workers: Workers = None,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Weights or activations? Measure uniform policies under each calibration, repair and fine-tuning."""
    with running() as bars:
        from haq.runs.study import PRECISIONS, TREATMENTS, run_study

        pieces = experiment_of(experiment, [*(overrides or []), *evaluating(no_cache, workers, ray_address)])
        document = run_study(
            pieces,
            out,
            precisions=precision or PRECISIONS,
            repairs=repair or TREATMENTS,
            calibrations=calibration or (),
            reporter=bars,
        )
    if as_json:
        print_json(document)
        return
    texts = list(document["costs"])
    table = compact_table(
        "", *texts, title=f"{document['metric']} on the search split, float {document['float_score']:.4g}"
    )
    for name in dict.fromkeys(row["treatment"] for row in document["rows"]):
        own = {row["precision"]: row["score"] for row in document["rows"] if row["treatment"] == name}
        table.add_row(name, *(number_text(own[text]) for text in texts))
    for metric in next(iter(document["costs"].values())):
        label, values = unit_row(metric, [document["costs"][text][metric] for text in texts])
        table.add_row(label, *values)
    failed = {row["treatment"]: row["error"] for row in document["rows"] if row["error"]}
    print_out(table, *(f"{name}: {reason}" for name, reason in failed.items()), *document["conclusions"])
    print_out(f"study: {out}")
