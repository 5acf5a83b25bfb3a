"""8-bit floats in an ONNX graph: float8 tensors, casts and scales.

Not QuantizeLinear and DequantizeLinear: ONNX Runtime 1.31 takes any pair of them around a convolution or a product for
integers, and then refuses the model or computes something else.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from haq.deployed.state import CodedWeight, ModelState
from haq.export.onnx.graph import Graph, attribute
from haq.quant.formats.integer import PerTensorInteger
from haq.quant.formats.scaled_float import ScaledFloat
from haq.values.errors import InputError
from haq.values.formats import Format

_TYPES = {"fp8_e4m3": TensorProto.FLOAT8E4M3FN, "fp8_e5m2": TensorProto.FLOAT8E5M2}


def lower_float8(graph: Graph, state: ModelState) -> None:
    """Put float8 nodes in place of the markers that are left; after all that is done to integers.

    Raises:
        InputError: scales of groups, or of the channels of a grouped transposed convolution; or integer activations,
            beside which ONNX Runtime 1.31 quantizes float weights anew.
    """
    for marker in [node for node in graph.nodes if node.op_type in ("Weight", "Input")]:
        name = attribute(marker, "layer")
        layer = state.layers[name]
        if marker.op_type == "Weight":
            assert layer.coded is not None
            if isinstance(layer.input, PerTensorInteger):
                raise InputError(
                    f"--format onnx: layer {name} has {layer.coded.format} weights and reads "
                    f"{layer.precision.activation}; ONNX Runtime would make 8-bit integers of the weights: give it "
                    "fp8 or float activations, or use --format torch"
                )
            graph.replace(marker, _weight(graph, name, layer.coded, marker.output[0]))
        else:
            assert isinstance(layer.input, ScaledFloat)
            graph.replace(marker, _input(graph, name, layer.input, layer.precision.activation, marker))


def _weight(graph: Graph, name: str, weight: CodedWeight, result: str) -> list[NodeProto]:
    layout = weight.layout
    if layout.granularity == "group" or (layout.granularity == "channel" and layout.transposed_groups > 1):
        raise InputError(
            f"--format onnx: layer {name} has {weight.format} weights with a scale for each {layout.granularity}, "
            "which ONNX cannot say of this layer; use --format torch, or quantization.weight_granularity = 'tensor'"
        )
    arrays = weight.blocks[0]
    codes = layout.join((arrays["codes"],)).contiguous().numpy()
    data_type, stored = _TYPES[weight.format.name], graph.fresh(f"{name}.weight")
    graph.initializers[stored] = helper.make_tensor(stored, data_type, codes.shape, codes.tobytes(), raw=True)
    scale = arrays["scale"].flatten().numpy()
    if layout.granularity == "channel":
        axis = 1 if layout.transposed_groups else 0
        scale = scale.reshape([-1 if dim == axis else 1 for dim in range(codes.ndim)])
    values = graph.fresh(f"{name}.values")
    return [
        helper.make_node("Cast", [stored], [values], f"{name}.weight.cast", to=TensorProto.FLOAT),
        helper.make_node(
            "Mul", [values, graph.constant(f"{name}.weight_scale", scale)], [result], f"{name}.weight.scale"
        ),
    ]


def _input(graph: Graph, name: str, quantizer: ScaledFloat, fmt: Format, marker: NodeProto) -> list[NodeProto]:
    scale = graph.constant(f"{name}.input_scale", np.float32(quantizer.scale))
    steps, codes, values = (graph.fresh(f"{name}.{stem}") for stem in ("steps", "codes", "values"))
    return [
        helper.make_node("Div", [marker.input[0], scale], [steps], f"{name}.input.divide"),
        helper.make_node("Cast", [steps], [codes], f"{name}.input.cast", to=_TYPES[fmt.name], saturate=1),
        helper.make_node("Cast", [codes], [values], f"{name}.input.widen", to=TensorProto.FLOAT),
        helper.make_node("Mul", [values, scale], [marker.output[0]], f"{name}.input.scale"),
    ]
