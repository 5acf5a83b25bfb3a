"""`haq export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from haq.commands.options import (
    AsJson,
    Overrides,
    experiment_or,
)
from haq.commands.terminal import (
    print_json,
    running,
    show_export,
)
from haq.values.rung import Rung

if TYPE_CHECKING:
    from haq.experiment.experiment import Experiment
from haq.commands.options import EXIT_CHECK


def export(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_POLICY", help="Run folder, or policy file (JSON).")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    format: Annotated[
        str,
        typer.Option(
            help="onnx, torch, integer or c (a folder); others: ort-overrides, torchao, modelopt, aimet, qonnx."
        ),
    ],
    experiment: Annotated[
        Path | None, typer.Option(help="Experiment file; default: the one that the run folder holds.")
    ] = None,
    overrides: Overrides = None,
    pack: Annotated[bool, typer.Option("--pack", help="onnx: 4-bit tensors for weights of 4 bits and fewer.")] = False,
    integer_outputs: Annotated[
        bool, typer.Option("--integer-outputs", help="onnx: 8-bit layers write 8 bits, for integer kernels throughout.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare the file's outputs with the torch model's.")] = False,
    samples: Annotated[int | None, typer.Option(min=1, help="How many samples --check compares.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0.0, help="Share that --check lets outputs differ by: 0.02, with --integer-outputs 0.1."),
    ] = None,
    target_cpu: Annotated[
        str, typer.Option(help="onnx: any, or vnni: faster there, and wrong on x86 processors without VNNI.")
    ] = "any",
    rounding: Annotated[
        str, typer.Option(help="integer: how rescaling rounds: half_away, half_even, half_up or gemmlowp.")
    ] = "half_away",
    nonlinear: Annotated[
        str, typer.Option(help="integer: GELU and softmax by a table or a polynomial (I-BERT's).")
    ] = "table",
    as_json: AsJson = False,
) -> None:
    """Write a policy's quantized model as a file that runs without haq. A failed --check exits with 4."""
    with running() as bars:
        from haq.commands.export import export_policy, policy_file
        from haq.export import ExportOptions

        pieces = experiment_or(experiment, overrides, lambda: _stored(policy_file(source)))
        trains = Rung(pieces.config.evaluator.rungs[-1]).trains
        bars.stage(f"{'fine-tuning and ' if trains else ''}exporting to {format}")
        document = export_policy(
            pieces,
            source,
            out,
            format=format,
            options=ExportOptions(pack, integer_outputs, target_cpu, rounding, nonlinear),
            check=check,
            samples=samples,
            tolerance=tolerance,
        )
    if as_json:
        print_json(document)
    else:
        show_export(document)
    if check and not document["check"]["passed"]:
        raise typer.Exit(EXIT_CHECK)


def _stored(path: Path) -> Experiment:
    from haq.experiment.experiment import Experiment

    return Experiment.stored(path)
