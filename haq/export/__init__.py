"""Export: a quantized model as a file that runs without `haq`'s search, and the check that it computes the same.

To add a format: a module with a `save` and a `load` as in `Exporter`, and one line in `EXPORTERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from haq.deployed.state import ModelState, capture, check_formats
from haq.edges.plugins import add_plugin
from haq.export.interchange.configurations import DOCUMENTS, save_document
from haq.export.torch_file import load_quantized, save_torch
from haq.quant import QuantizedModel
from haq.quant.nested import call_model
from haq.training import TrainableModel
from haq.values.errors import InputError

Runner = Callable[[Any], Any]
"""Inputs of one batch -> the outputs, structured as the model's."""


@dataclass(frozen=True)
class ExportOptions:
    """What a user may ask of some formats.

    Attributes:
        pack: weights of 4 bits and fewer in 4-bit tensors.
        integer_outputs: 8-bit layers write 8-bit tensors, so that integer kernels run throughout.
        target_cpu: `any`: weights are stored so that no kernel saturates. `vnni`: signed weights throughout, which
            processors with VNNI (or Arm's dot product) compute exactly and faster, and other x86 processors not.
        rounding: of rescaling in integers, in `haq.engine.dyadic.ROUNDINGS`.
        nonlinear: GELU and softmax in integers: `table` or `polynomial`.
    """

    pack: bool = False
    integer_outputs: bool = False
    target_cpu: str = "any"
    rounding: str = "half_away"
    nonlinear: str = "table"

    def asked(self) -> tuple[str, ...]:
        defaults = asdict(ExportOptions())
        return tuple(name for name, value in asdict(self).items() if value != defaults[name])


@dataclass(frozen=True)
class Exporter:
    """One format.

    Attributes:
        save: `(float model, state, example inputs, path, options)`: write the file.
        load: `(path, float model)`: what computes the file's outputs; `None` where another tool has to.
        packages: what must be installed.
        options: those of `ExportOptions` that it knows.
        calibrates: whether it takes ranges from the example inputs.
    """

    save: Callable[[nn.Module, ModelState, Any, Path, ExportOptions], None]
    load: Callable[[Path, nn.Module], Runner] | None
    packages: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    calibrates: bool = False


def _save_torch(model: nn.Module, state: ModelState, inputs: Any, path: Path, options: ExportOptions) -> None:
    save_torch(state, path)


def _load_torch(path: Path, model: nn.Module) -> Runner:
    module = load_quantized(model, path)
    return lambda inputs: call_model(module, inputs)


def _save_onnx(model: nn.Module, state: ModelState, inputs: Any, path: Path, options: ExportOptions) -> None:
    from haq.export.onnx.model import save_onnx

    of_onnx = EXPORTERS["onnx"].options
    save_onnx(model, state, inputs, path, **{name: value for name, value in asdict(options).items() if name in of_onnx})


def _load_onnx(path: Path, model: nn.Module) -> Runner:
    from haq.export.onnx.run import OnnxRunner

    return OnnxRunner(path.read_bytes())


def _save_overrides(model: nn.Module, state: ModelState, inputs: Any, path: Path, options: ExportOptions) -> None:
    from haq.export.interchange.ort_overrides import save_overrides

    save_overrides(model, state, inputs, path)


def _save_qonnx(model: nn.Module, state: ModelState, inputs: Any, path: Path, options: ExportOptions) -> None:
    from haq.export.interchange.qonnx import save_qonnx

    save_qonnx(model, state, inputs, path)


def _save_document(name: str) -> Callable[[nn.Module, ModelState, Any, Path, ExportOptions], None]:
    def save(model: nn.Module, state: ModelState, inputs: Any, path: Path, options: ExportOptions) -> None:
        save_document(name, model, state, path)

    return save


def _save_integer(model: nn.Module, state: ModelState, inputs: Any, path: Path, options: ExportOptions) -> None:
    from haq.engine import LoweringOptions, lower, save_integer

    chosen = LoweringOptions(rounding=options.rounding, nonlinear=options.nonlinear)
    save_integer(lower(model, state, inputs, chosen), path)


def _load_integer(path: Path, model: nn.Module) -> Runner:
    from haq.engine import IntegerRunner, load_integer

    return IntegerRunner(load_integer(path))


def _save_c(model: nn.Module, state: ModelState, inputs: Any, path: Path, options: ExportOptions) -> None:
    from haq.engine import LoweringOptions, lower
    from haq.export.c.folder import save_c

    chosen = LoweringOptions(rounding=options.rounding, nonlinear=options.nonlinear, output_bits=8)
    save_c(lower(model, state, inputs, chosen), inputs, path)


def _load_c(path: Path, model: nn.Module) -> Runner:
    from haq.export.c.folder import CRunner

    return CRunner(path)


_PLAIN = ExportOptions()
_INTEGER_OPTIONS = ("rounding", "nonlinear")
TARGET_CPUS = ("any", "vnni")

EXPORTERS: dict[str, Exporter] = {
    "onnx": Exporter(
        _save_onnx, _load_onnx, packages=("onnx", "onnxruntime"), options=("pack", "integer_outputs", "target_cpu")
    ),
    "torch": Exporter(_save_torch, _load_torch),
    "c": Exporter(_save_c, _load_c, options=_INTEGER_OPTIONS, calibrates=True),
    "integer": Exporter(_save_integer, _load_integer, options=_INTEGER_OPTIONS, calibrates=True),
    "ort-overrides": Exporter(_save_overrides, None, packages=("onnx", "onnxruntime")),
    "qonnx": Exporter(_save_qonnx, None, packages=("onnx",)),
    **{name: Exporter(_save_document(name), None) for name in DOCUMENTS},
}


def exporter(name: str, options: ExportOptions = _PLAIN) -> Exporter:
    """The format called `name`.

    Raises:
        InputError: unknown, with the known ones; or a package it needs is missing; or it lacks an option.
    """
    add_plugin(EXPORTERS, name, group="haq.exporters", wanted=Exporter)
    if name not in EXPORTERS:
        raise InputError(f"--format {name!r}: unknown; known: {', '.join(sorted(EXPORTERS))}")
    chosen = EXPORTERS[name]
    for package in chosen.packages:
        if find_spec(package) is None:
            raise InputError(f"--format {name} needs the package {package}; install it: pip install 'haq[onnx]'")
    if options.target_cpu not in TARGET_CPUS:
        raise InputError(f"--target-cpu {options.target_cpu!r}: unknown; known: {', '.join(TARGET_CPUS)}")
    for option in options.asked():
        if option not in chosen.options:
            able = ", ".join(other for other, entry in sorted(EXPORTERS.items()) if option in entry.options)
            flag = f"--{option.replace('_', '-')}"
            raise InputError(f"{flag}: the {name} format has no such option; leave it out, or use --format {able}")
    return chosen


def export(
    quantized: QuantizedModel | TrainableModel,
    model: nn.Module,
    path: Path,
    *,
    inputs: Any,
    format: str,
    options: ExportOptions = _PLAIN,
) -> None:
    """Write `quantized` as it is now (policy, bias correction, batch-norm statistics, what it learned) to `path`.

    Args:
        quantized: with a policy applied.
        model: the float model that it wraps or is a copy of, on the CPU.
        path: the file.
        inputs: an example of what the model is called with, two samples or more; the ranges of `integer_outputs` are
            taken from it.
        format: a name in `EXPORTERS`.
        options: what the format is asked for beside.

    Raises:
        InputError: no policy, an unknown format, a missing package, an option that the format lacks, or a model that
            it cannot hold.
    """
    chosen, state = exporter(format, options), capture(quantized)
    check_formats(format, state)
    chosen.save(model, state, inputs, path, options)


__all__ = ["EXPORTERS", "ExportOptions", "Exporter", "Runner", "capture", "export", "exporter", "load_quantized"]
