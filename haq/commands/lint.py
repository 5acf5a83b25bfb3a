"""`haq lint`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from haq.commands.options import AsJson, ExperimentFile, Overrides, experiment_of
from haq.commands.terminal import new_table, number_text, print_json, print_out, running
from haq.edges.documents import write_json


def lint(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    precision: Annotated[
        str | None, typer.Option(help="Measure at this precision, e.g. w4a4; default: the lowest of the space.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Training samples that losses are measured on.")] = 256,
    out: Annotated[Path | None, typer.Option(help="Write the findings there, too (JSON).")] = None,
    as_json: AsJson = False,
) -> None:
    """Find what makes a network hard to quantize or slow on the device, ranked by measured cost, with advice."""
    with running() as bars:
        from haq.lint import lint_experiment

        bars.stage("lint")
        loaded = experiment_of(experiment, overrides)
        findings = lint_experiment(loaded, precision=precision, samples=samples, reporter=bars)
    document = {"findings": [finding.to_doc() for finding in findings]}
    if out is not None:
        write_json(out, document)
    if as_json:
        print_json(document)
        return
    table = new_table("rule", "layer", "value", "cost", "share")
    for finding in findings:
        unit = "ms" if finding.unit == "latency_ms" else "loss"
        cost = f"{number_text(finding.cost)} {unit}"
        table.add_row(finding.rule, finding.layer, number_text(finding.value), cost, f"{100 * finding.share:.1f} %")
    print_out(table if findings else "nothing found")
    for rule in dict.fromkeys(finding.rule for finding in findings):
        first = next(finding for finding in findings if finding.rule == rule)
        print_out(f"{rule}: {first.meaning}; {first.advice}")
