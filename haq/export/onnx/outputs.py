"""8-bit layers that write 8-bit tensors: what integer kernels need where the quantized model keeps a float value."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from haq.export.onnx.graph import Graph
from haq.export.onnx.run import OnnxRunner
from haq.export.onnx.trace import OPSET
from haq.quant.nested import tensors_in

_FOLLOWED = ("Relu", "Clip", "MaxPool")
_JOINS = ("Add",)
_COMPUTES = ("Conv", "ConvTranspose")
_LARGEST = 255
_BYTES = (np.int8, np.uint8)


def quantize_outputs(graph: Graph, inputs: Any) -> None:
    """Quantize what 8-bit convolutions write, and sums of it, where no 8-bit layer does so already.

    A value that an 8-bit layer reads is written once in that layer's codes; another one in the range that it has over
    `inputs`. Call it when inputs and weights are lowered.

    Args:
        graph: of the quantized model; changed in place.
        inputs: what the ranges are taken from.
    """
    written = [_end(graph, node) for node in graph.nodes if _is_integer(graph, node)]
    ranges = _ranges(graph, [value for value in written if not _codes(graph, value)], inputs)
    for value in written:
        _write(graph, value, ranges.get(value))


def _is_integer(graph: Graph, node: NodeProto) -> bool:
    """Whether an integer kernel could compute it: a convolution of 8-bit codes, or a sum whose last operand is one."""
    if node.op_type in _COMPUTES:
        return all(_reads_codes(graph, name) for name in node.input[:2])
    return node.op_type in _JOINS and _owner(graph, node) is not None


def _owner(graph: Graph, join: NodeProto) -> NodeProto | None:
    """The operand of a join that is computed last, if it is an 8-bit layer."""
    order = {id(node): index for index, node in enumerate(graph.nodes)}
    makers = [maker for name in join.input if (maker := _maker(graph, name)) is not None]
    last = max(makers, key=lambda node: order[id(node)], default=None)
    return last if last is not None and _is_integer(graph, last) else None


def _maker(graph: Graph, value: str) -> NodeProto | None:
    node = graph.producer(value)
    while node is not None and node.op_type in _FOLLOWED:
        node = graph.producer(node.input[0])
    return node


def _reads_codes(graph: Graph, value: str) -> bool:
    node = graph.producer(value)
    if node is None or node.op_type != "DequantizeLinear":
        return False
    codes = graph.value(node.input[0])
    zero = graph.value(node.input[2])
    return (
        (codes is None or codes.dtype in (np.int8, np.uint8)) and zero is not None and zero.dtype in (np.int8, np.uint8)
    )


def _end(graph: Graph, node: NodeProto) -> str:
    """The value that is written: behind activations and pools."""
    value: str = node.output[0]
    while True:
        following = graph.only_reader(value)
        if following is None or following.op_type not in _FOLLOWED:
            break
        value = following.output[0]
    return value


def _codes(graph: Graph, value: str) -> NodeProto | None:
    """The 8-bit quantization of `value`, if a layer reads one."""
    for reader in graph.readers(value):
        zero = graph.value(reader.input[2]) if reader.op_type == "QuantizeLinear" else None
        if zero is not None and zero.dtype == np.uint8:
            return reader
    return None


def _write(graph: Graph, value: str, limits: tuple[float, float] | None) -> None:
    """Let all that read `value` in float read its codes instead."""
    quantize = _codes(graph, value)
    readers = [node for node in graph.readers(value) if node is not quantize]
    if not readers and value not in graph.outputs:
        return
    if quantize is None:
        assert limits is not None  # of every value that has no codes yet
        quantize = _quantize(graph, value, limits)
    else:
        graph.replace(quantize, [])
    producer = graph.producer(value)
    assert producer is not None  # values here are written by nodes
    read = graph.fresh(f"{value}.written")
    if value in graph.outputs:
        quantize.input[0], producer.output[0], read = read, read, value
        readers = []
    for reader in readers:
        for index, name in enumerate(reader.input):
            if name == value:
                reader.input[index] = read
    inputs = [quantize.output[0], *quantize.input[1:]]
    dequantize = helper.make_node("DequantizeLinear", inputs, [read], name=f"{value}.dequantize")
    graph.replace(producer, [producer, quantize, dequantize])


def _quantize(graph: Graph, value: str, limits: tuple[float, float]) -> NodeProto:
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    scale = np.float32(max(high - low, 1e-12) / _LARGEST)
    zero = np.array(np.clip(np.rint(-low / float(scale)), 0, _LARGEST))
    parameters = [graph.constant(f"{value}.scale", scale), graph.integers(f"{value}.zero", zero, TensorProto.UINT8)]
    return helper.make_node("QuantizeLinear", [value, *parameters], [graph.fresh(value)], name=f"{value}.quantize")


def _ranges(graph: Graph, values: list[str], inputs: Any) -> dict[str, tuple[float, float]]:
    """The least and the largest of each value over `inputs`."""
    if not values:
        return {}
    probe = copy.deepcopy(graph)
    probe.outputs = set(values)
    model = probe.finish([("", OPSET)])
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(value) for value in values)
    outputs = OnnxRunner(model.SerializeToString())(inputs)
    found = tensors_in(outputs)
    return {value: (float(x.min()), float(x.max())) for value, x in zip(values, found, strict=True)}
