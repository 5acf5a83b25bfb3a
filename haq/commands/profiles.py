"""`haq profile` and `haq validate`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from haq.commands.options import (
    AsJson,
    Overrides,
    experiment_of,
)
from haq.commands.terminal import (
    new_table,
    print_json,
    print_out,
    running,
    show_profile,
)


def profile(
    experiment: Annotated[Path, typer.Option(help="Experiment file: model, data and quantization are read.")],
    out: Annotated[Path, typer.Option(help="The profile to write (.toml).")] = Path("hardware_profiles/mine.toml"),
    runtime: Annotated[str, typer.Option(help="onnxruntime, torch, qemu, or command: your own.")] = "onnxruntime",
    device: Annotated[str, typer.Option(help="torch: cpu or cuda.")] = "cpu",
    script: Annotated[
        str, typer.Option("--command", help="command: reads a policy (JSON), writes milliseconds as its last line.")
    ] = "",
    low: Annotated[str, typer.Option(help="command: the low precision compared with float.")] = "w8a8",
    timeout: Annotated[float, typer.Option(min=0.1, help="command: seconds for one call.")] = 60.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one operator.")] = 1,
    policies: Annotated[int, typer.Option(min=4, help="Mixed policies to fit the cost of switches on.")] = 12,
    rounds: Annotated[int, typer.Option(min=2, help="Interleaved repeats; the median of their minima counts.")] = 30,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with measurements that were stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a machine for a model: layers in two precisions, switches between them, as a hardware profile."""
    command = shlex.join(["haq", *sys.argv[1:]])
    with running() as bars:
        from haq.profiling.machine import Settings, profile_machine
        from haq.profiling.runtimes.choice import RuntimeChoice

        pieces = experiment_of(experiment, overrides)
        if runtime == "qemu":
            from haq.profiling.microcontroller import check_options, profile_microcontroller

            check_options(device=device, command=script, low=low, timeout=timeout, threads=threads)
            check_options(policies=policies, rounds=rounds)
            print_json(profile_microcontroller(pieces, out, resume=resume, command=command, show=bars))
            return
        choice = RuntimeChoice(runtime, threads, device, script, low, timeout)
        settings = Settings(choice, policies, rounds)
        document = profile_machine(pieces, out, settings=settings, resume=resume, command=command, show=bars)
    if as_json:
        print_json(document)
        return
    show_profile(document)


def validate(
    profile: Annotated[str, typer.Argument(metavar="PROFILE", help="A profile that haq profile made.")],
    experiment: Annotated[Path, typer.Option(help="Experiment file: model, data and quantization are read.")],
    policies: Annotated[int, typer.Option(min=2, help="How many held-out policies.")] = 40,
    rounds: Annotated[int, typer.Option(min=2, help="Interleaved repeats; the median of their minima counts.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Of the policies.")] = 1,
    baselines: Annotated[
        bool, typer.Option(help="Also predict with summed stand-alone times and with bit operations.")
    ] = True,
    script: Annotated[
        str, typer.Option("--command", help="Of a profile that was measured with a command: run this one.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/<name>-validation.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure random mixed policies end to end and compare with what a measured profile predicts."""
    with running() as bars:
        from haq.profiling.microcontroller import check_options, is_emulated, validate_microcontroller
        from haq.profiling.validate import validate_profile

        pieces = experiment_of(experiment, overrides)
        folder = out or Path("runs") / f"{pieces.config.name}-validation"
        if is_emulated(profile):
            check_options(rounds=rounds, command=script)
            print_json(validate_microcontroller(pieces, profile, policies=policies, seed=seed, out=folder, show=bars))
            return
        document = validate_profile(
            pieces,
            profile,
            policies=policies,
            rounds=rounds,
            seed=seed,
            out=folder,
            show=bars,
            baselines=baselines,
            command=script,
        )
    if as_json:
        print_json({"folder": str(folder), **document})
        return
    table = new_table(
        "model", "mean error %", "90th percentile %", "worst %", "bias %", "Spearman", title=document["device"]
    )
    for name, row in document["models"].items():
        table.add_row(name, *(f"{row[key]:.2f}" for key in ("mean", "p90", "worst", "bias")), f"{row['spearman']:.3f}")
    print_out(
        table,
        f"{document['policies']} held-out policies, half of them in runs of layers; noise floor "
        f"{document['noise_floor_percent']:.2f} %",
        f"at the pace of the profile; now this machine takes {100 * (document['pace'] - 1):+.1f} %, with which the "
        f"profile's mean error is {document['as_timed']['mean']:.2f} %",
        f"figures: {folder / 'validation.json'}\nscatter plot: {folder / 'validation.png'}",
    )
