"""Activations in an ONNX graph: QuantizeLinear and DequantizeLinear, biases that fit them, clips they make needless."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from haq.deployed.state import ModelState
from haq.export.onnx.graph import Graph, attribute
from haq.quant.formats.base import Quantizer
from haq.quant.formats.binary import Binary
from haq.quant.formats.half import Cast
from haq.quant.formats.integer import PerTensorInteger
from haq.quant.formats.scaled_float import ScaledFloat
from haq.quant.formats.ternary import Ternary

_PASSED = ("Relu", "Clip", "MaxPool", "Flatten", "Reshape", "Transpose")
"""Operators through which a runtime moves a quantization up to the convolution."""
BIAS_TOLERANCE = 3e-5
"""Largest rounding error of an integer bias, as a share of the range of the quantization that follows: 0.008 steps at 8
bits. Where activations of 1 or 2 bits come later, one value in a thousand on the other side of a boundary changes the
class of up to 2 % of the images: there, biases are rounded not at all."""
_COARSE_BITS = 2
HALF_A_STEP = 0.5 / 255
"""The tolerance where speed counts: as much as the quantization itself moves a value."""
_FINE = 64
"""Where speed counts, no rounding of a bias matters beside weights of so many steps: half a unit is less than a
hundredth of what one step of an input does."""
_LARGEST_BIAS, _SMALLEST_SCALE = 2**30, 1e-30


def lower_inputs(graph: Graph, state: ModelState) -> None:
    """Put quantize and dequantize nodes in place of the markers of inputs: a tensor is quantized once per range."""
    done: dict[tuple[str, Quantizer], str] = {}
    for marker in [node for node in graph.nodes if node.op_type == "Input"]:
        name = attribute(marker, "layer")
        quantizer = state.layers[name].input
        source, result = marker.input[0], marker.output[0]
        if isinstance(quantizer, ScaledFloat):
            continue  # see `float8`
        if isinstance(quantizer, PerTensorInteger):
            nodes: list[NodeProto] = []
            codes = done.get((source, quantizer), "")
            if not codes:
                nodes, codes = _quantize(graph, name, quantizer, source)
                done[source, quantizer] = codes
            inputs = [codes, *_parameters(graph, name, quantizer)]
            nodes.append(helper.make_node("DequantizeLinear", inputs, [result], name=f"{name}.input.dequantize"))
        else:
            nodes = _real(graph, name, quantizer, source, result)
        graph.replace(marker, nodes)


def fold_pads(graph: Graph, state: ModelState) -> None:
    """Zeros around what a convolution reads -> the convolution's own padding, so that a quantization fuses before it.

    Not for formats without a zero.
    """
    for conv in [node for node in graph.nodes if node.op_type == "Conv"]:
        before = graph.producer(conv.input[0])
        reader = conv
        if before is not None and before.op_type == "Input":
            if isinstance(state.layers[attribute(before, "layer")].input, Binary):
                continue
            reader = before
        pad = graph.producer(reader.input[0])
        widths = None if pad is None else _zeros(graph, pad)
        if pad is None or widths is None or (reader is before and graph.only_reader(before.output[0]) is None):
            continue
        own = attribute(conv, "pads", [0] * len(widths))
        for entry in [entry for entry in conv.attribute if entry.name == "pads"]:
            conv.attribute.remove(entry)
        conv.attribute.append(helper.make_attribute("pads", [a + b for a, b in zip(own, widths, strict=True)]))
        reader.input[0] = pad.input[0]
        if not graph.readers(pad.output[0]):
            graph.replace(pad, [])


def _zeros(graph: Graph, pad: NodeProto) -> list[int] | None:
    """How many zeros a Pad puts before and behind each spatial dimension; `None` where it does something else."""
    if pad.op_type != "Pad" or attribute(pad, "mode", "constant") != "constant" or len(pad.input) > 3:
        return None
    widths = graph.computed(pad.input[1])
    fill = graph.value(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
    if widths is None or fill is None or np.any(fill) or np.any(widths < 0):
        return None
    before, behind = widths.reshape(2, -1)
    return [*before[2:].tolist(), *behind[2:].tolist()] if not any((*before[:2], *behind[:2])) else None


def _levels(quantizer: PerTensorInteger) -> tuple[int, int]:
    """The ONNX type that holds the codes, counted from zero, and the largest of them."""
    largest = quantizer.quant_max - quantizer.quant_min
    return (TensorProto.UINT8 if largest <= 255 else TensorProto.UINT16), largest


def _parameters(graph: Graph, name: str, quantizer: PerTensorInteger) -> list[str]:
    data_type, _ = _levels(quantizer)
    zero = np.array(quantizer.zero_point - quantizer.quant_min)
    scale = graph.constant(f"{name}.input_scale", np.float32(quantizer.scale))
    return [scale, graph.integers(f"{name}.input_zero_point", zero, data_type)]


def _quantize(graph: Graph, name: str, quantizer: PerTensorInteger, source: str) -> tuple[list[NodeProto], str]:
    """Nodes from `source` to its codes. Symmetric codes are shifted to unsigned ones, which integer kernels want."""
    data_type, largest = _levels(quantizer)
    codes, clipped = graph.fresh(f"{name}.codes"), graph.fresh(f"{name}.clipped")
    scale, zero = _parameters(graph, name, quantizer)
    node = helper.make_node("QuantizeLinear", [source, scale, zero], [codes], name=f"{name}.input.quantize")
    before = []
    if source in graph.inputs:
        # Images have few distinct values, so ties are common, and QuantizeLinear divides where torch multiplies.
        reciprocal = graph.constant(f"{name}.reciprocal", np.float32(1) / np.float32(quantizer.scale))
        node.input[0], node.input[1] = graph.fresh(f"{name}.steps"), graph.constant(f"{name}.one", np.float32(1))
        before = [helper.make_node("Mul", [source, reciprocal], [node.input[0]])]
    if largest in (255, 65535):
        return [*before, node], codes
    if data_type == TensorProto.UINT8:
        return [*before, node, _clip(graph, name, codes, clipped, 0, largest)], clipped
    # Runtimes clip no 16-bit integers: clip before, where the ends are the values of the end codes.
    scale_of = _known(graph, node.input[1])
    steps = (quantizer.quant_min - quantizer.zero_point, quantizer.quant_max - quantizer.zero_point)
    ends = [graph.constant(f"{name}.end", np.float32(step * float(scale_of))) for step in steps]
    clip = helper.make_node("Clip", [node.input[0], *ends], [clipped], name=f"{name}.input.clip")
    node.input[0] = clipped
    return [*before, clip, node], codes


def _clip(graph: Graph, name: str, codes: str, clipped: str, low: int, high: int) -> NodeProto:
    ends = [graph.integers(f"{name}.end", np.array(end), TensorProto.UINT8) for end in (low, high)]
    return helper.make_node("Clip", [codes, *ends], [clipped], name=f"{name}.input.clip")


def _real(graph: Graph, name: str, quantizer: Quantizer, source: str, result: str) -> list[NodeProto]:
    """Formats that have no QuantizeLinear, in real numbers."""
    if isinstance(quantizer, Cast):
        narrow = TensorProto.FLOAT16 if str(quantizer.dtype) == "torch.float16" else TensorProto.BFLOAT16
        value = graph.fresh(f"{name}.narrow")
        return [
            helper.make_node("Cast", [source], [value], to=narrow, name=f"{name}.input.cast"),
            helper.make_node("Cast", [value], [result], to=TensorProto.FLOAT, name=f"{name}.input.widen"),
        ]
    assert isinstance(quantizer, Ternary | Binary)
    scale = graph.constant(f"{name}.input_scale", np.float32(quantizer.scale))
    zero = graph.constant(f"{name}.zero", np.float32(0))
    chosen = graph.fresh(f"{name}.chosen")
    if isinstance(quantizer, Binary):
        minus = graph.constant(f"{name}.input_scale", np.float32(-quantizer.scale))
        return [
            helper.make_node("GreaterOrEqual", [source, zero], [chosen]),
            helper.make_node("Where", [chosen, scale, minus], [result], name=f"{name}.input.binary"),
        ]
    threshold = graph.constant(f"{name}.threshold", np.float32(quantizer.threshold))
    size, sign, value = (graph.fresh(f"{name}.{stem}") for stem in ("size", "sign", "value"))
    return [
        helper.make_node("Abs", [source], [size]),
        helper.make_node("Greater", [size, threshold], [chosen]),
        helper.make_node("Sign", [source], [sign]),
        helper.make_node("Mul", [sign, scale], [value]),
        helper.make_node("Where", [chosen, value, zero], [result], name=f"{name}.input.ternary"),
    ]


def bias_tolerance(state: ModelState) -> float:
    """`BIAS_TOLERANCE`, or 0 where some layer reads activations of 1 or 2 bits."""
    formats = [layer.precision.activation for layer in state.layers.values()]
    return 0.0 if any(fmt.bits <= _COARSE_BITS for fmt in formats) else BIAS_TOLERANCE


def quantize_biases(graph: Graph, *, tolerance: float = BIAS_TOLERANCE) -> None:
    """Biases of convolutions between quantized tensors -> int32, in units of input scale times weight scale.

    Integer kernels want them so; none takes 16-bit weights, beside which biases stay float. So do those that rounding
    would move the result of too far (coarse units, at few bits), and a runtime then computes in float.
    """
    for conv in [node for node in graph.nodes if node.op_type == "Conv" and len(node.input) > 2]:
        source, weight = (graph.producer(name) for name in conv.input[:2])
        width, bias = _next_range(graph, conv), graph.value(conv.input[2])
        if width is None or bias is None or not (_is_dequantize(source) and _is_dequantize(weight)):
            continue
        assert source is not None
        assert weight is not None
        input_scale, codes = graph.value(source.input[1]), graph.value(weight.input[0])
        if input_scale is None or codes is None or codes.dtype.itemsize > 1 or graph.value(weight.input[1]) is None:
            continue
        _widen(graph, weight, np.abs(bias) / (float(input_scale) * _LARGEST_BIAS))
        unit = np.broadcast_to((input_scale * _known(graph, weight.input[1])).astype(np.float32), bias.shape)
        codes = np.rint(bias.astype(np.float64) / unit)
        coarse = np.abs(codes * unit - bias) > tolerance * width
        if tolerance == HALF_A_STEP:
            coarse &= _steps(graph, weight) < _FINE
        if coarse.any() or np.abs(codes).max() >= 2**31:
            continue
        name = weight.name.removesuffix(".weight.dequantize")
        inputs = [graph.integers(f"{name}.bias", codes, TensorProto.INT32), graph.constant(f"{name}.bias_scale", unit)]
        conv.input[2] = graph.fresh(f"{name}.bias")
        node = helper.make_node("DequantizeLinear", inputs, [conv.input[2]], name=f"{name}.bias.dequantize", axis=0)
        graph.replace(conv, [node, conv])


def split_float_biases(graph: Graph) -> None:
    """Biases of convolutions that stay float, behind the convolution: `x - (-bias)`.

    Where a convolution with a float bias reads a DequantizeLinear and is quantized again, ONNX Runtime rounds the bias
    (and a float weight) to integers by itself (its WeightBiasQuantization), at few bits by far too much; it leaves a
    Sub alone, and other runtimes compute the same.
    """
    for conv in [node for node in graph.nodes if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 2]:
        bias = graph.value(conv.input[2])
        weight = graph.value(conv.input[1])
        marked = graph.producer(conv.input[1])
        if weight is None and marked is not None and _is_dequantize(marked):
            weight = graph.value(marked.input[0])
        if bias is None or weight is None or not _is_dequantize(graph.producer(conv.input[0])):
            continue
        minus = graph.constant(f"{conv.name}.minus_bias", -bias.reshape(-1, *[1] * (weight.ndim - 2)))
        product, result = graph.fresh(f"{conv.name}.product"), conv.output[0]
        del conv.input[2]
        conv.output[0] = product
        graph.replace(conv, [conv, helper.make_node("Sub", [product, minus], [result])])


def _widen(graph: Graph, weight: NodeProto, least: np.ndarray) -> None:
    """Scales of at least `least` per channel, and codes to match: channels whose weights are as good as zero beside
    their bias, whose integer bias would overflow. Where all weights are zero, any scale will do: the finest."""
    codes, scale, zero = (_known(graph, name) for name in weight.input)
    if scale.shape != least.shape or graph.only_reader(weight.output[0]) is None:
        return
    size = np.where(_steps(graph, weight) > 0, np.maximum(np.abs(scale), least), np.maximum(least, _SMALLEST_SCALE))
    wider = np.copysign(size, scale).astype(np.float32)  # a batch norm may have turned the sign
    if np.array_equal(wider, scale):
        return
    per_row = (-1, *[1] * (codes.ndim - 1))
    offset = zero.astype(np.int64).reshape(per_row)
    kept = np.rint((codes - offset) * (scale / wider).reshape(per_row)) + offset
    data_type = graph.initializers[weight.input[0]].data_type
    weight.input[0] = graph.integers(weight.input[0], kept, data_type)
    weight.input[1] = graph.constant(weight.input[1], wider)


def _steps(graph: Graph, weight: NodeProto) -> np.ndarray:
    """The largest weight of each output channel, in steps."""
    codes, _, zero = (_known(graph, name).astype(np.int64) for name in weight.input)
    rows = codes.reshape(len(codes), -1) - (zero.reshape(-1, 1) if zero.ndim else zero)
    return np.asarray(np.abs(rows).max(1))


def _is_dequantize(node: NodeProto | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


def _next_range(graph: Graph, node: NodeProto) -> float | None:
    """The width of the range of the quantization that alone follows, if one does."""
    while True:
        following = graph.only_reader(node.output[0])
        if following is None or following.op_type not in (*_PASSED, "QuantizeLinear"):
            return None
        node = following
        if node.op_type == "QuantizeLinear":
            break
    scale, zero = graph.value(node.input[1]), graph.value(node.input[2])
    if scale is None or zero is None or zero.dtype != np.uint8:
        return None
    clip = graph.only_reader(node.output[0])
    low, high = 0, 255
    if clip is not None and clip.op_type == "Clip":
        low, high = (int(_known(graph, name)) for name in clip.input[1:3])
    return float(scale) * (high - low)


def move_clips(graph: Graph) -> None:
    """Relu and Clip before an 8-bit quantization -> a Clip of the codes behind it, or none, so that kernels fuse.

    Quantization is monotone: the codes of clipped values are the codes clipped to the codes of the ends.
    """
    for quantize in [node for node in graph.nodes if node.op_type == "QuantizeLinear"]:
        before = graph.producer(quantize.input[0])
        if before is None or before.op_type not in ("Relu", "Clip") or graph.only_reader(before.output[0]) is None:
            continue
        scale, zero, ends = graph.value(quantize.input[1]), graph.value(quantize.input[2]), _ends(graph, before)
        if scale is None or zero is None or zero.dtype != np.uint8 or ends is None:
            continue
        after = graph.only_reader(quantize.output[0])
        largest = 255
        if after is not None and after.op_type == "Clip":
            largest = int(_known(graph, after.input[2]))
            after_output = after.output[0]
            graph.replace(after, [])
        else:
            after_output = quantize.output[0]
            quantize.output[0] = graph.fresh(f"{after_output}.unclipped")
        low, high = (int(np.clip(np.rint(end / float(scale)) + int(zero), 0, largest)) for end in ends)
        quantize.input[0] = before.input[0]
        graph.replace(before, [])
        if (low, high) == (0, 255):
            quantize.output[0] = after_output
            continue
        name = quantize.name.removesuffix(".input.quantize")
        graph.replace(quantize, [quantize, _clip(graph, name, quantize.output[0], after_output, low, high)])


def _known(graph: Graph, name: str) -> np.ndarray:
    """The content of an initializer that this module made."""
    value = graph.value(name)
    assert value is not None
    return value


def _ends(graph: Graph, clip: NodeProto) -> tuple[float, float] | None:
    """The range that a Relu or Clip keeps; `None` if it is computed."""
    if clip.op_type == "Relu":
        return 0.0, np.inf
    values = []
    for name, default in zip([*clip.input[1:], "", ""], (-np.inf, np.inf), strict=False):
        end = graph.value(name) if name else np.float32(default)
        if end is None:
            return None
        values.append(float(end))
    return values[0], values[1]
