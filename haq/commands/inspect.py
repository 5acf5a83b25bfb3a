"""`haq inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from haq.commands.options import AsJson, Overrides, experiment_of
from haq.commands.terminal import new_table, number_text, print_json, print_out, running
from haq.values.errors import InputError

_MOST_FORMATS = 4


def inspect(
    source: Annotated[
        str, typer.Argument(metavar="EXPERIMENT|MODULE:FUNCTION", help="Experiment file, or your function for a model.")
    ],
    device: Annotated[str | None, typer.Option(help="Hardware profile; default: the experiment's.")] = None,
    shape: Annotated[
        str | None, typer.Option("--input", metavar="1x3x224x224", help="MODULE:FUNCTION: shape of the model's input.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say what of a model can be quantized and what stays in float: layers, shapes, formats, ties. Runs no search."""
    with running() as bars:
        from haq.hardware import load_profile
        from haq.runs.inspect import inspect_model, inspection

        bars.stage("tracing the model")
        if source.endswith(".toml") or Path(source).exists():
            loaded = experiment_of(Path(source), overrides)
            profile = loaded.profile if device is None else load_profile(device)
            found = inspection(loaded.network, profile=profile)
        else:
            if overrides:
                raise InputError("--set: overrides keys of an experiment file; leave it out")
            model, example = _own_model(source, shape)
            found = inspect_model(model, example, profile=None if device is None else load_profile(device))
    if as_json:
        print_json(found.to_doc())
        return
    table = new_table("layer", "kind", "weights", "MACs", "formats", title=found.device or None)
    for layer in found.network.layers:
        formats = found.formats.get(layer.name, ())
        shown = " ".join(formats[:_MOST_FORMATS]) + (
            f" +{len(formats) - _MOST_FORMATS}" * (len(formats) > _MOST_FORMATS)
        )
        table.add_row(layer.name, layer.kind, number_text(layer.params), number_text(layer.macs), shown)
    print_out(table)
    if found.left:
        rest = new_table("in float", "kind", "parameters", "MACs")
        for part in found.left:
            rest.add_row(part.name or "(model)", part.kind, number_text(part.params), number_text(part.macs))
        print_out(rest)
    for why, group in found.ties:
        print_out(f"tied, they {why}: {', '.join(group)}")
    print_out(found.summary)


def _own_model(reference: str, shape: str | None) -> tuple[Any, Any]:
    """The model that the user's function returns, and an example: the function's second result, or `--input`."""
    import torch

    from haq.edges.user_code import call_reference

    if ":" not in reference:
        raise InputError(f"{reference}: no such file; name an experiment file, or module:function")
    value = call_reference(reference, {}, key="MODULE:FUNCTION", folder=Path.cwd())
    model, example = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"{reference}: returned {type(model).__name__}; return an nn.Module, or (module, example)")
    if shape is not None:
        try:
            example = torch.zeros(*[int(size) for size in shape.lower().split("x")])
        except (ValueError, RuntimeError) as error:
            raise InputError(f"--input {shape}: is no shape; write 1x3x224x224") from error
    if example is None:
        raise InputError(f"{reference}: returned no example of its input; add --input, e.g. --input 1x3x224x224")
    return model.eval(), example
