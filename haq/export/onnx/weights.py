"""Weights in an ONNX graph: integer initializers behind DequantizeLinear, with batch norm in their scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper

from haq.deployed.state import IntegerWeight, LayerState, ModelState
from haq.export.onnx.graph import Graph, attribute
from haq.quant.formats.integer import PerTensorInteger

_SIGNED = {4: TensorProto.INT4, 8: TensorProto.INT8, 16: TensorProto.INT16}
_UNSIGNED = {4: TensorProto.UINT4, 8: TensorProto.UINT8, 16: TensorProto.UINT16}
_CASTS = {"fp16": (TensorProto.FLOAT16, torch.float16), "bf16": (TensorProto.BFLOAT16, torch.bfloat16)}
_FUSED = ("BatchNormalization", "Relu", "Clip")
_LARGEST_SUM = 32767
"""Runtimes on AVX2 without VNNI add two products of an unsigned input and a signed weight in 16 bits, saturating."""
MIDDLE = 128
"""Zero point of signed weights that are stored unsigned: products of two unsigned codes are added in 32 bits."""
_BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes for which ONNX Runtime multiplies with 4-bit weights as they are (MatMulNBits)."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """A weight with an output channel per row: codes `[out, n]`, scale and zero point `[out, blocks]`."""

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray

    @classmethod
    def of(cls, weight: IntegerWeight, gain: np.ndarray | None) -> _Rows:
        layout = weight.layout
        out = layout.shape[1] * layout.transposed_groups if layout.transposed_groups else layout.shape[0]
        codes, scale, zero = (
            torch.cat([part.reshape(out if kind == 0 or part.numel() % out == 0 else 1, -1) for part in parts], 1)
            for kind, parts in enumerate(zip(*weight.blocks, strict=True))
        )
        scales = scale.numpy()
        if gain is not None:
            scales = (scales.astype(np.float64) * gain.reshape(-1, 1)).astype(np.float32)
        return cls(codes.numpy(), scales, np.broadcast_to(zero.numpy(), scales.shape))


def container(layer: LayerState, *, pack: bool) -> int:
    """The ONNX integer type that holds a layer's weight codes, of 16 bits at most: int8, or with `pack` 4 bits."""
    assert layer.weight is not None
    fmt, holds = layer.precision.weight, layer.weight.fits
    unsigned = min(int(codes.min()) for codes, _, _ in layer.weight.blocks) >= 0 and any(
        bool(zero.any()) or int(codes.max()) >= 2 ** (fmt.bits - 1) for codes, _, zero in layer.weight.blocks
    )
    width = next(width for width in (4, 8, 16) if fmt.bits <= width and holds(width))
    if not pack or not (fmt.is_integer or fmt.group_size):
        width = max(width, 8)
    return (_UNSIGNED if unsigned else _SIGNED)[width]


def may_saturate(layer: LayerState) -> bool:
    """Whether a sum of two products of input and weight codes may leave 16 bits, whichever two a kernel adds up.

    Not so where weights have 7 bits or fewer, or inputs; then signed weights are exact on every processor.
    """
    if layer.weight is None or not isinstance(layer.input, PerTensorInteger):
        return False
    levels = layer.input.quant_max - layer.input.quant_min
    if levels > 255:  # no integer kernel takes 16-bit inputs
        return False
    codes = layer.weight.codes.to(torch.int64)
    most = max(int(codes.max()), -int(codes.min()))
    return 2 * levels * most > _LARGEST_SUM


def name_float_layers(graph: Graph, state: ModelState) -> None:
    """Take the markers off float32 weights; the nodes that read them get their layers' names."""
    for marker in [node for node in graph.nodes if node.op_type == "Weight"]:
        name = attribute(marker, "layer")
        if state.layers[name].stored is not None or state.layers[name].precision.weight.name in _CASTS:
            continue
        _name_readers(graph, marker.output[0], name)
        graph.rename(marker.output[0], marker.input[0])
        graph.replace(marker, [])


def _name_readers(graph: Graph, weight: str, name: str) -> None:
    for reader in graph.readers(weight):
        computes = graph.readers(reader.output[0]) if reader.op_type == "Transpose" else [reader]
        for node in computes:
            node.name = name


def name_outputs(graph: Graph, state: ModelState) -> None:
    """Call what a layer writes, up to its activation, `<layer>.output.<n>`: a runtime names fused nodes so."""
    for node in [node for node in graph.nodes if node.name in state.layers]:
        current: NodeProto | None = node
        while current is not None and current.output[0] not in graph.outputs:
            old, new = current.output[0], graph.fresh(f"{node.name}.output")
            graph.rename(old, new)
            current.output[0] = new
            following = graph.only_reader(new)
            current = following if following is not None and following.op_type in _FUSED else None


def fold_batch_norms(graph: Graph, state: ModelState) -> dict[str, np.ndarray]:
    """Move batch norms behind layers with integer weights into their scales and biases; the codes stay.

    Returns:
        Value written by the marker of a weight -> factor per output channel.
    """
    gains = {}
    for norm in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        layer = graph.producer(norm.input[0])
        if layer is None or layer.op_type not in ("Conv", "Gemm", "ConvTranspose"):
            continue
        marker = graph.producer(layer.input[1])
        if marker is None or marker.op_type != "Weight" or graph.only_reader(layer.output[0]) is None:
            continue
        if state.layers[attribute(marker, "layer")].weight is None or graph.only_reader(marker.output[0]) is None:
            continue
        values = [graph.value(name) for name in norm.input[1:]]
        bias = graph.value(layer.input[2]) if len(layer.input) > 2 else np.zeros((), np.float32)
        if bias is None or any(value is None for value in values):
            continue
        scale, shift, mean, variance = (np.asarray(value, np.float64) for value in values)
        gain = scale / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        gains[marker.output[0]] = gain
        shifted = ((bias - mean) * gain + shift).astype(np.float32)
        del layer.input[2:]
        layer.input.append(graph.constant(f"{attribute(marker, 'layer')}.bias", shifted))
        layer.output[0] = norm.output[0]
        graph.replace(norm, [])
    return gains


def split_gemms(graph: Graph) -> None:
    """Gemm with a marked weight -> MatMul minus negated bias: the product in integers, the bias in float.

    ONNX Runtime joins MatMul and Add to a float Gemm before it looks for integers; it leaves Sub alone.
    """
    for gemm in [node for node in graph.nodes if node.op_type == "Gemm"]:
        marker = graph.producer(gemm.input[1])
        if marker is None or marker.op_type != "Weight" or not attribute(gemm, "transB", 0):
            continue
        turned, product = graph.fresh(f"{gemm.name}.transposed"), graph.fresh(f"{gemm.name}.product")
        nodes = [
            helper.make_node("Transpose", [gemm.input[1]], [turned], perm=[1, 0]),
            helper.make_node("MatMul", [gemm.input[0], turned], [product]),
        ]
        if len(gemm.input) > 2:
            bias = graph.computed(gemm.input[2])
            assert bias is not None  # a parameter, perhaps behind an Identity
            minus = graph.constant(f"{gemm.name}.minus_bias", -bias)
            nodes.append(helper.make_node("Sub", [product, minus], [gemm.output[0]]))
        else:
            nodes[-1].output[0] = gemm.output[0]
        graph.replace(gemm, nodes)


def lower_weights(
    graph: Graph, state: ModelState, gains: dict[str, np.ndarray], *, pack: bool, exact: bool = True
) -> None:
    """Put initializers and DequantizeLinear (or Cast) nodes in place of the markers of weights.

    Args:
        graph: changed in place.
        state: the quantization.
        gains: of `fold_batch_norms`.
        pack: 4-bit tensors for weights of 4 bits and fewer.
        exact: unsigned weights where products of signed ones could saturate.
    """
    for marker in [node for node in graph.nodes if node.op_type == "Weight"]:
        name = attribute(marker, "layer")
        layer = state.layers[name]
        if layer.coded is not None:
            _name_readers(graph, marker.output[0], name)
            continue  # see `float8`
        reader = graph.only_reader(marker.output[0])
        turned = reader if reader is not None and reader.op_type == "Transpose" else None
        result = marker.output[0] if turned is None else turned.output[0]
        for computes in graph.readers(result):
            computes.name = name
        if turned is not None:
            graph.replace(turned, [])
        if layer.weight is None:
            nodes = _cast(graph, name, layer, state, result, transpose=turned is not None)
        else:
            rows = _Rows.of(layer.weight, gains.get(marker.output[0]))
            data_type, offset = container(layer, pack=pack), 0
            if exact and data_type == TensorProto.INT8 and may_saturate(layer):
                data_type, offset = TensorProto.UINT8, MIDDLE
            rows = _Rows(rows.codes + offset, rows.scale, rows.zero_point + offset)
            codes = layer.weight.codes.numpy() + offset
            nodes = _dequantize(graph, name, layer.weight, rows, codes, data_type, result, transpose=turned is not None)
        graph.replace(marker, nodes)


def _cast(
    graph: Graph, name: str, layer: LayerState, state: ModelState, result: str, *, transpose: bool
) -> list[NodeProto]:
    data_type, dtype = _CASTS[layer.precision.weight.name]
    weight = state.tensors[f"{name}.weight"].to(dtype)
    weight = weight.t().contiguous() if transpose else weight
    stored = graph.fresh(f"{name}.weight")
    raw = weight.view(torch.int16).numpy().tobytes()
    graph.initializers[stored] = helper.make_tensor(stored, data_type, tuple(weight.shape), raw, raw=True)
    return [helper.make_node("Cast", [stored], [result], to=TensorProto.FLOAT, name=f"{name}.weight.cast")]


def _dequantize(
    graph: Graph,
    name: str,
    weight: IntegerWeight,
    rows: _Rows,
    codes: np.ndarray,
    data_type: int,
    result: str,
    *,
    transpose: bool,
) -> list[NodeProto]:
    layout = weight.layout
    single = rows.scale.size == 1
    if rows.scale.shape[1] == 1 and (single or layout.transposed_groups <= 1):
        axis = 1 if layout.transposed_groups or transpose else 0
        parameters = () if single else (-1,)
        scale, zero = rows.scale.reshape(parameters), rows.zero_point.reshape(parameters)
        codes = codes.T if transpose else codes
        return [_dequantize_linear(graph, name, codes, scale, zero, data_type, result, axis=axis)]
    block = {"block_size": layout.group_size} if rows.scale.shape[1] > 1 else {}
    if transpose and data_type in (TensorProto.INT4, TensorProto.UINT4) and layout.group_size in _BLOCKS:
        codes, scale, zero = (part.T for part in (rows.codes, rows.scale, rows.zero_point))
        return [_dequantize_linear(graph, name, codes, scale, zero, data_type, result, axis=0, **block)]
    if not block:
        rows = _Rows(rows.codes, rows.scale.reshape(-1), rows.zero_point.reshape(-1))
    flat = graph.fresh(f"{name}.rows")
    axis = 1 if block else 0
    node = _dequantize_linear(graph, name, rows.codes, rows.scale, rows.zero_point, data_type, flat, axis=axis, **block)
    if transpose:
        # Not DequantizeLinear along axis 0 right before MatMul: ONNX Runtime 1.31 takes it for one scale per column.
        return [node, helper.make_node("Transpose", [flat], [result], perm=[1, 0])]
    return [node, *_to_shape(graph, name, weight, flat, result)]


def _dequantize_linear(
    graph: Graph,
    name: str,
    codes: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    data_type: int,
    result: str,
    axis: int,
    block_size: int | None = None,
) -> NodeProto:
    inputs = [
        graph.integers(f"{name}.weight", codes, data_type),
        graph.constant(f"{name}.weight_scale", np.ascontiguousarray(scale, np.float32)),
        graph.integers(f"{name}.weight_zero_point", zero, data_type),
    ]
    node = helper.make_node("DequantizeLinear", inputs, [result], name=f"{name}.weight.dequantize", axis=axis)
    if block_size is not None:
        node.attribute.append(helper.make_attribute("block_size", block_size))
    return node


def _to_shape(graph: Graph, name: str, weight: IntegerWeight, flat: str, result: str) -> list[NodeProto]:
    """From rows `[out, n]` to the shape of the weight."""
    shape, groups = weight.layout.shape, weight.layout.transposed_groups
    whole = graph.constant(f"{name}.shape", np.array(shape, np.int64))
    if not groups:
        return [helper.make_node("Reshape", [flat, whole], [result])]
    by_group = np.array((groups, shape[1], shape[0] // groups, *shape[2:]), np.int64)
    split, swapped = graph.fresh(f"{name}.by_group"), graph.fresh(f"{name}.swapped")
    order = [0, 2, 1, *range(3, len(by_group))]
    return [
        helper.make_node("Reshape", [flat, graph.constant(f"{name}.by_group", by_group)], [split]),
        helper.make_node("Transpose", [split], [swapped], perm=order),
        helper.make_node("Reshape", [swapped, whole], [result]),
    ]
