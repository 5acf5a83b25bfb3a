"""From a torch module to a float ONNX graph in which each quantized input and weight carries a marker."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from haq.deployed.state import ModelState, QuantizeInput, restore
from haq.quant.formats.half import Identity
from haq.quant.nested import call_model, map_tensors, tensors_in
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


class _MarkWeight(nn.Module):
    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, weight: Tensor) -> Tensor:
        marked: Tensor = _Weight.apply(weight, self.layer)  # type: ignore[no-untyped-call]
        return marked


class _MarkInput:
    """A quantizer in name only."""

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        marked: Tensor = _Input.apply(x, self.layer)  # type: ignore[no-untyped-call]
        return marked


def trace_marked(model: nn.Module, state: ModelState, inputs: Any) -> onnx.ModelProto:
    """The marked graph; the first dimension of each input and output is free.

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
    module = _marked(model, state)
    inputs = map_tensors(lambda tensor: tensor[:2], inputs)  # the operators do not depend on how many there are
    named = _in_order(model, inputs) if isinstance(inputs, Mapping) else {}
    arguments = () if named else tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    names = list(named) or (["input"] if len(arguments) == 1 else [f"input_{i}" for i in range(len(arguments))])
    with torch.no_grad():
        count = len(list(tensors_in(call_model(module, inputs))))
    outputs = ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    stream = io.BytesIO()
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                module,
                arguments,
                stream,  # type: ignore[arg-type]
                kwargs=named or None,
                dynamo=False,
                opset_version=OPSET,
                custom_opsets={MARKERS: 1},
                input_names=names,
                output_names=outputs,
                dynamic_axes={name: {0: "batch"} for name in (*names, *outputs)},
            )
    except Exception as error:  # whatever the model raises, or the exporter for an operator it does not know
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{type(model).__name__} cannot be exported to ONNX: {type(error).__name__}: {reason}; replace that "
            "operator, or use --format torch"
        ) from error
    return onnx.load_from_string(stream.getvalue())


def _in_order(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Named inputs in the order of the model's parameters: the exporter names them by position."""
    order = list(inspect.signature(model.forward).parameters)
    return dict(sorted(inputs.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def _marked(model: nn.Module, state: ModelState) -> nn.Module:
    module = restore(model, state, hooks=False)
    for name, layer in state.layers.items():
        target = module.get_submodule(name)
        parametrize.register_parametrization(target, "weight", _MarkWeight(name))
        if not isinstance(layer.input, Identity):
            target.register_forward_pre_hook(QuantizeInput(_MarkInput(name)), prepend=True, with_kwargs=True)
    return module


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings: it is called old, and the newer one needs one more package."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
