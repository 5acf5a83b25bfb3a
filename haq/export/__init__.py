"""Export: a quantized model as a file that runs without `haq`'s search, and the check that it computes the same.

To add a format: a module with a `save` and a `load` as in `Exporter`, and one line in `EXPORTERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from haq.errors import InputError
from haq.export.state import ModelState, capture
from haq.export.torch_file import load_quantized, save_torch
from haq.quant import QuantizedModel
from haq.quant.tree import call_model

Runner = Callable[[Any], Any]
"""Inputs of one batch -> the outputs, structured as the model's."""


@dataclass(frozen=True)
class Exporter:
    """One format.

    Attributes:
        save: `(float model, state, example inputs, path, pack)`: write the file.
        load: `(path, float model)`: what computes the file's outputs.
    """

    save: Callable[[nn.Module, ModelState, Any, Path, bool], None]
    load: Callable[[Path, nn.Module], Runner]


def _save_torch(model: nn.Module, state: ModelState, inputs: Any, path: Path, pack: bool) -> None:
    if pack:
        raise InputError("--pack: the torch format has no 4-bit tensors; leave it out, or use --format onnx")
    save_torch(state, path)


def _load_torch(path: Path, model: nn.Module) -> Runner:
    module = load_quantized(model, path)
    return lambda inputs: call_model(module, inputs)


def _save_onnx(model: nn.Module, state: ModelState, inputs: Any, path: Path, pack: bool) -> None:
    _require("onnx")
    from haq.export.onnx_model import save_onnx

    save_onnx(model, state, inputs, path, pack=pack)


def _load_onnx(path: Path, model: nn.Module) -> Runner:
    _require("onnxruntime")
    from haq.export.onnx_run import OnnxRunner

    return OnnxRunner(path.read_bytes())


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise InputError(f"--format onnx needs the package {package}; install it: pip install 'haq[onnx]'")


EXPORTERS: dict[str, Exporter] = {
    "onnx": Exporter(_save_onnx, _load_onnx),
    "torch": Exporter(_save_torch, _load_torch),
}


def exporter(name: str) -> Exporter:
    """The format called `name`.

    Raises:
        InputError: unknown; lists the known ones.
    """
    if name not in EXPORTERS:
        raise InputError(f"--format {name!r}: unknown; known: {', '.join(sorted(EXPORTERS))}")
    return EXPORTERS[name]


def export(
    quantized: QuantizedModel, model: nn.Module, path: Path, *, inputs: Any, format: str, pack: bool = False
) -> None:
    """Write `quantized` as it is now (policy, bias correction, batch-norm statistics) to `path`.

    Args:
        quantized: with a policy applied.
        model: the float model that it wraps, on the CPU.
        path: the file.
        inputs: an example of what the model is called with, two samples or more.
        format: a name in `EXPORTERS`.
        pack: onnx only: weights of 4 bits and fewer in 4-bit tensors.

    Raises:
        InputError: no policy, an unknown format, a missing package, an option that the format lacks, or a model that
            it cannot hold.
    """
    exporter(format).save(model, capture(quantized), inputs, path, pack)


__all__ = ["EXPORTERS", "Exporter", "Runner", "capture", "export", "exporter", "load_quantized"]
