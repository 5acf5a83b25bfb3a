"""`haq init`: a commented experiment file that runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from haq.commands.terminal import print_out, running
from haq.edges.documents import write_text
from haq.values.errors import InputError

_TEXT = """# Written by haq init. Run it: haq search {file}
name = {name}
seed = 0

[model]
{model}

[data]                      # three disjoint splits: train calibrates, search scores policies, test is read at the end
{data}

[device]
profile = {device}          # haq hardware list; haq hardware show {device_text}

[budgets]                   # a number in the metric's unit, or a percentage of uniform 8 bit
{metric} = {budget}         # also: latency_ms, energy_mj, size_bytes, peak_activation_bytes, bops

# [space]                   # default: the formats that the device accelerates
# weights = ["int4", "int8"]
# activations = ["int8"]

[evaluator]
kind = "ptq"                # after training; "bn": batch norm re-estimated; "qat": fine-tuned
{scoring}

[search]
strategy = "ilp"            # exact; also: greedy, evolutionary, bayesian, actor_critic, ...
max_trials = 8              # policies to measure besides the uniform and greedy baselines
"""


def init(
    out: Annotated[Path, typer.Option(help="The experiment file to write.")] = Path("experiment.toml"),
    model: Annotated[str | None, typer.Option(help="Name in the zoo, or your module:function.")] = None,
    data: Annotated[str | None, typer.Option(help="Name in the zoo, or your module:function.")] = None,
    device: Annotated[str | None, typer.Option(help="Hardware profile: a name, or a file.")] = None,
    budget: Annotated[str | None, typer.Option(help="METRIC=BOUND, e.g. size_bytes=50% or latency_ms=4.")] = None,
    task: Annotated[str, typer.Option(help="classes or values: what the model's outputs are.")] = "classes",
) -> None:
    """Write a commented experiment file that runs; asks for what is left out where there is a terminal."""
    with running():
        from haq.experiment.config import load_experiment
        from haq.hardware import load_profile

        if out.exists():
            raise InputError(f"--out {out}: already exists; name another file")
        model = model or _ask("Model (zoo name or module:function)", "--model")
        data = data or _ask("Data (zoo name or module:function)", "--data")
        device = device or _ask("Device (haq hardware list)", "--device")
        budget = budget or _ask("Budget", "--budget", default="size_bytes=50%")
        load_profile(device, base=out.parent)
        metric, _, bound = budget.partition("=")
        if task not in ("classes", "values"):
            raise InputError(f"--task {task!r}: unknown; known: classes, values")
        text = _TEXT.format(
            file=out,
            name=json.dumps(out.stem),
            model=_named(model),
            data=_named(data),
            device=json.dumps(device),
            device_text=device,
            metric=metric.strip(),
            budget=_bound(bound.strip(), budget),
            scoring='metric = "accuracy"\nloss = "cross_entropy"'
            if task == "classes"
            else 'metric = "negative_mse"\nloss = "mse"',
        )
        write_text(out, text)
        try:
            load_experiment(out)
        except InputError:
            out.unlink()
            raise
    print_out(f"wrote {out}")
    print_out(f"next: haq inspect {out}; haq search {out}")


def _ask(question: str, option: str, *, default: str | None = None) -> str:
    if not sys.stdin.isatty():
        raise InputError(f"{option}: is needed; there is no terminal to ask at")
    return str(typer.prompt(question, default=default))


def _named(reference: str) -> str:
    return f"{'factory' if ':' in reference else 'name'} = {json.dumps(reference)}"


def _bound(text: str, given: str) -> str:
    if text.endswith("%"):
        return json.dumps(text)
    try:
        return repr(float(text))
    except ValueError as error:
        raise InputError(f"--budget {given}: write METRIC=BOUND, e.g. size_bytes=50% or latency_ms=4") from error
