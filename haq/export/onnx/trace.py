"""From a torch module to a float ONNX graph in which each quantized input and weight carries a marker."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from haq.deployed.state import ModelState, QuantizeInput, restore
from haq.modules import plain_paths
from haq.quant.formats.half import Identity
from haq.quant.nested import call_model, map_tensors, scores_of, tensors_in
from haq.values.errors import InputError

MARKERS = "haq.markers"
"""Domain of the marker operators `Input` and `Weight`, each with the attribute `layer`."""
OPSET = 21
"""The first with 16-bit and 4-bit integers and blocks in DequantizeLinear."""


class _Input(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor, layer: str) -> Tensor:
        return x.clone()

    @staticmethod
    def symbolic(g: Any, x: Any, layer: str) -> Any:
        return g.op(f"{MARKERS}::Input", x, layer_s=layer).setType(x.type())


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, weight: Tensor, layer: str) -> Tensor:
        return weight.clone()

    @staticmethod
    def symbolic(g: Any, weight: Any, layer: str) -> Any:
        return g.op(f"{MARKERS}::Weight", weight, layer_s=layer).setType(weight.type())


Mark = Callable[[str, Tensor, str], Tensor]
"""`(Input or Weight, value, layer)` -> the value behind a marker operator."""


def _mark_scripted(kind: str, x: Tensor, layer: str) -> Tensor:
    """As the TorchScript exporter records it."""
    function = _Input if kind == "Input" else _Weight
    marked: Tensor = function.apply(x, layer)  # type: ignore[no-untyped-call]
    return marked


def _mark_exported(kind: str, x: Tensor, layer: str) -> Tensor:
    """As torch.export records it; outside an export, nothing is computed."""
    marked: Tensor = torch.onnx.ops.symbolic(
        f"{MARKERS}::{kind}", (x,), {"layer": layer}, dtype=x.dtype, shape=x.shape, version=1
    )
    return marked


class _MarkWeight(nn.Module):
    def __init__(self, layer: str, mark: Mark) -> None:
        super().__init__()
        self.layer, self.mark = layer, mark

    def forward(self, weight: Tensor) -> Tensor:
        return self.mark("Weight", weight, self.layer)


class _Plain(nn.Module):
    """In place of `DataParallel`, under the same names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class _Named(nn.Module):
    """Takes by position what a model takes by name, and nothing else: an exporter would add defaults as inputs."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *values: Any) -> Any:
        return self.module(**dict(zip(self.names, values, strict=True)))


class _MarkInput:
    """A quantizer in name only."""

    def __init__(self, layer: str, mark: Mark) -> None:
        self.layer, self.mark = layer, mark

    def __call__(self, x: Tensor) -> Tensor:
        return self.mark("Input", x, self.layer)


def trace_marked(model: nn.Module, state: ModelState, inputs: Any) -> onnx.ModelProto:
    """The marked graph; the first dimension of each input and output is free.

    Torch's TorchScript exporter is tried first: it is an order of magnitude faster. What it does not know, and what no
    longer has it, goes through `torch.export`, which needs the package onnxscript.

    Args:
        model: the float architecture, on the CPU.
        state: what is exported.
        inputs: an example of what the model is called with, two samples or more.

    Raises:
        InputError: torch cannot export the model; says why.
    """
    kinds = {str(tensor.dtype) for tensor in state.tensors.values() if tensor.is_floating_point()}
    if kinds - {"torch.float32"}:
        raise InputError(
            f"{type(model).__name__} has parameters of {', '.join(sorted(kinds))}; the onnx format needs a float32 "
            "model: call model.float(), or use --format torch"
        )
    model = _Plain(model.module) if isinstance(model, nn.DataParallel) else model
    inputs = map_tensors(lambda tensor: tensor[:2], inputs)  # the operators do not depend on how many there are
    call = _call(model, state, inputs)
    try:
        return _by_torchscript(call.on(_marked(model, state, _mark_scripted)), call)
    except Exception as error:  # whatever the model raises, or the exporter for an operator it does not know
        first = error
    if find_spec("onnxscript") is None:
        raise InputError(
            f"{_failure(model, first)}; pip install 'haq[onnx]' has onnxscript, with which torch.export is tried, too"
        ) from first
    try:
        return _by_torch_export(call.on(_marked(model, state, _mark_exported)), call)
    except Exception as error:
        raise InputError(f"{_failure(model, error)}; replace that operator, or use --format torch") from error


@dataclass(frozen=True)
class _Call:
    """How the model is called, and what inputs and outputs are called."""

    arguments: tuple[Any, ...]
    by_name: bool
    inputs: list[str]
    outputs: list[str]

    def on(self, module: nn.Module) -> nn.Module:
        """What is to be called with the arguments by position."""
        return _Named(module, self.inputs) if self.by_name else module


def _call(model: nn.Module, state: ModelState, inputs: Any) -> _Call:
    named = _in_order(model, inputs) if isinstance(inputs, Mapping) else {}
    arguments = tuple(named.values() if named else inputs if isinstance(inputs, tuple | list) else (inputs,))
    names = list(named) or (["input"] if len(arguments) == 1 else [f"input_{i}" for i in range(len(arguments))])
    with torch.no_grad():
        count = len(list(tensors_in(call_model(_marked(model, state, _mark_scripted), inputs))))
    outputs = ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    return _Call(arguments, bool(named), names, outputs)


def _by_torchscript(module: nn.Module, call: _Call) -> onnx.ModelProto:
    stream = io.BytesIO()
    with _quiet(), _no_graph_dump(), plain_paths(), torch.no_grad():
        torch.onnx.export(
            module,
            call.arguments,
            stream,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            custom_opsets={MARKERS: 1},
            input_names=call.inputs,
            output_names=call.outputs,
            dynamic_axes={name: {0: "batch"} for name in (*call.inputs, *call.outputs)},
        )
    return onnx.load_from_string(stream.getvalue())


def _by_torch_export(module: nn.Module, call: _Call) -> onnx.ModelProto:
    with _quiet(), plain_paths(), torch.no_grad():
        program = torch.onnx.export(
            module,
            call.arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=call.inputs,
            output_names=call.outputs,
            dynamic_shapes=(_free_batch(call.arguments),) if call.by_name else _free_batch(call.arguments),
            optimize=True,
            verbose=False,
        )
    assert program is not None  # it is, with dynamo=True
    # Values of the graph alone: what was captured besides (traces, shapes by name) is of no use to a runtime.
    return onnx.load_from_string(program.model_proto.SerializeToString())


def _free_batch(inputs: Any) -> Any:
    """The first dimension of every tensor, free; one name for all."""
    batch = torch.export.Dim("batch")

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return {0: batch} if value.dim() else {}
        if isinstance(value, Mapping):
            return {key: of(entry) for key, entry in value.items()}
        return tuple(of(entry) for entry in value) if isinstance(value, tuple | list) else None

    return of(inputs)


def _failure(model: nn.Module, error: Exception) -> str:
    """On one line: the innermost cause has the operator's name."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = " ".join(str(cause).split())[:300]
    return f"{type(model).__name__} cannot be exported to ONNX: {type(cause).__name__}: {reason}"


def _in_order(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Named inputs in the order of the model's parameters: the exporter names them by position."""
    order = list(inspect.signature(model.forward).parameters)
    return dict(sorted(inputs.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def _marked(model: nn.Module, state: ModelState, mark: Mark) -> nn.Module:
    module = restore(model, state, hooks=False)
    module.register_forward_hook(lambda _, __, outputs: scores_of(outputs))
    for name, layer in state.layers.items():
        target = module.get_submodule(name)
        parametrize.register_parametrization(target, "weight", _MarkWeight(name, mark), unsafe=True)
        if not isinstance(layer.input, Identity):
            target.register_forward_pre_hook(QuantizeInput(_MarkInput(name, mark)), prepend=True, with_kwargs=True)
    return module


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings, logs and progress."""
    disabled = logging.root.manager.disable
    silent = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


@contextlib.contextmanager
def _no_graph_dump() -> Iterator[None]:
    """Without the graph on hundreds of lines that the TorchScript exporter, in C++, prints where it fails."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # standard error is closed
        yield
        return
    torch._C._jit_set_onnx_log_output_stream("stderr")  # which is not buffered
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        torch._C._jit_set_onnx_log_output_stream("stdout")
