"""The qonnx format: a float ONNX graph with a Quant node for each weight and each input of a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper
from torch import nn

from haq.deployed.state import LayerState, ModelState, check_codes
from haq.edges.documents import write_bytes
from haq.export.onnx.graph import Graph, attribute
from haq.export.onnx.trace import OPSET, trace_marked
from haq.export.onnx.weights import name_float_layers
from haq.quant.formats.binary import Binary
from haq.quant.formats.half import Cast
from haq.quant.formats.integer import PerTensorInteger
from haq.values.errors import InputError

DOMAIN = "qonnx.custom_op.general"


def qonnx_model(model: nn.Module, state: ModelState, inputs: Any) -> ModelProto:
    """`model` as quantized by `state`, in QONNX: `Quant(x, scale, zero point, bits)` and `BipolarQuant(x, scale)`.

    Weights are stored as their float values, which the node in front of them leaves as they are. One sample at a time:
    QONNX's tools want fixed shapes.

    Raises:
        InputError: a format that QONNX does not have (fp16, bf16, ternary activations), or torch cannot export.
    """
    check_codes("qonnx", state)
    graph = Graph(trace_marked(model, state, inputs))
    name_float_layers(graph, state)
    for marker in [node for node in graph.nodes if node.op_type == "Weight"]:
        graph.replace(marker, _weight(graph, attribute(marker, "layer"), state, marker))
    for marker in [node for node in graph.nodes if node.op_type == "Input"]:
        graph.replace(marker, [_input(graph, attribute(marker, "layer"), state, marker)])
    result = graph.finish([("", OPSET), (DOMAIN, 1)])
    result.producer_name = "haq"
    for value in (*result.graph.input, *result.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return result


def save_qonnx(model: nn.Module, state: ModelState, inputs: Any, path: Path) -> None:
    """Write `qonnx_model` to a file.

    Raises:
        InputError: a format that QONNX does not have, torch cannot export the model, or the file cannot be written.
    """
    write_bytes(path, qonnx_model(model, state, inputs).SerializeToString())


def _weight(graph: Graph, name: str, state: ModelState, marker: NodeProto) -> list[NodeProto]:
    layer = state.layers[name]
    if layer.weight is None:
        raise InputError(f"--format qonnx: layer {name} has {layer.precision.weight} weights, which it cannot say")
    values = graph.constant(f"{name}.weight", layer.weight.dequantize().numpy())
    scale, zero = (graph.constant(f"{name}.{key}", part) for key, part in _spread(layer).items())
    fmt, result = layer.precision.weight, marker.output[0]
    if fmt.name == "binary":
        node = helper.make_node("BipolarQuant", [values, scale], [result], f"{name}.weight.quant", domain=DOMAIN)
        return [node]
    signed = min(int(codes.min()) for codes, _, _ in layer.weight.blocks) < 0 or fmt.name == "ternary"
    return [_quant(graph, name, "weight", [values, scale, zero], result, fmt.bits, signed, fmt.name == "ternary")]


def _spread(layer: LayerState) -> dict[str, np.ndarray]:
    """Scale and zero point, one number, one per channel, or one per weight, in a shape that fits the weight's."""
    assert layer.weight is not None
    layout = layer.weight.layout
    parts = {}
    for key, index in (("scale", 1), ("zero_point", 2)):
        blocks = tuple(block[index].float().expand_as(block[0]) for block in layer.weight.blocks)
        whole = layout.join(tuple(block.contiguous() for block in blocks))
        if layout.granularity == "tensor":
            whole = whole.flatten()[0]
        elif layout.granularity == "channel" and not layout.transposed_groups:
            whole = whole.flatten(1)[:, :1].reshape(-1, *[1] * (len(layout.shape) - 1))
        parts[key] = whole.contiguous().numpy()
    return parts


def _input(graph: Graph, name: str, state: ModelState, marker: NodeProto) -> NodeProto:
    layer = state.layers[name]
    quantizer, result = layer.input, marker.output[0]
    if isinstance(quantizer, Binary):
        scale = graph.constant(f"{name}.input_scale", np.float32(quantizer.scale))
        inputs = [marker.input[0], scale]
        return helper.make_node("BipolarQuant", inputs, [result], f"{name}.input.quant", domain=DOMAIN)
    if not isinstance(quantizer, PerTensorInteger):
        what = "fp16 or bf16" if isinstance(quantizer, Cast) else "ternary"
        raise InputError(f"--format qonnx: layer {name} reads {what} activations, which it cannot say")
    scale = graph.constant(f"{name}.input_scale", np.float32(quantizer.scale))
    zero = graph.constant(f"{name}.input_zero_point", np.float32(quantizer.zero_point))
    bits, signed = layer.precision.activation.bits, quantizer.quant_min < 0
    narrow = quantizer.quant_min == -quantizer.quant_max  # trained ternary activations
    return _quant(graph, name, "input", [marker.input[0], scale, zero], result, bits, signed, narrow)


def _quant(
    graph: Graph, name: str, what: str, inputs: list[str], result: str, bits: int, signed: bool, narrow: bool
) -> NodeProto:
    width = graph.constant(f"{name}.{what}_bits", np.float32(bits))
    return helper.make_node(
        "Quant",
        [*inputs, width],
        [result],
        f"{name}.{what}.quant",
        domain=DOMAIN,
        signed=int(signed),
        narrow=int(narrow),
        rounding_mode="ROUND",
    )
