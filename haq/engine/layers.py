"""Lowering the layers of a policy: integer weights, biases and factors, batch norm among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx import Node as FxNode

from haq.deployed.state import IntegerWeight
from haq.engine.captured import op_name
from haq.engine.dyadic import dyadic
from haq.engine.formats import WIDE_BITS, code_format, symmetric
from haq.engine.graph import Node, TensorFormat
from haq.engine.lower import Builder, Value, describe, is_float
from haq.engine.proof import spare_bits
from haq.values.errors import InputError

_LARGEST_BIAS = 2.0**30
_MOST_SHIFT = 12


def lower_layer(builder: Builder, node: FxNode, *, result: FxNode, norm: tuple[np.ndarray, np.ndarray] | None) -> None:
    """Write the integer node of a layer's call.

    Args:
        builder: where to.
        node: the call.
        result: the graph node whose value it is: `node`, or the batch norm behind it.
        norm: factor and shift of that batch norm, per output channel.
    """
    name, state = builder.graph.layers[node], builder.graph.layer(node)
    if state.weight is None or is_float(state.input):
        kind = "weights" if state.weight is None else "activations"
        raise InputError(
            f"layer {name!r} has float {kind} ({state.precision}); integers need int1 to int8, ternary or binary there"
        )
    read = _input(builder, node)
    weight, weight_zero, scale = integer_weight(name, state.weight, transposed=op_name(node) == "conv_transpose2d")
    bias = _bias(builder, node, len(scale))
    gain, shift = norm if norm is not None else (np.ones(len(scale)), np.zeros(len(scale)))
    fmt = builder.wanted.of(result)
    weights = {"weight": weight, "weight_zero": weight_zero}
    op = {"linear": "linear", "conv_transpose2d": "conv_transpose"}.get(op_name(node), "conv")
    draft = Node(name, op, (), (), fmt, {"groups": _geometry(node)["groups"] if op == "conv_transpose" else 1}, weights)
    parts, bits = finest_requantization(draft, read.format, scale, bias * gain + shift, gain)
    arrays = weights | parts
    if op == "linear":
        builder.emit(result, op, [read], fmt, layer=name, accumulator_shift=bits, **arrays)
    elif op_name(node) == "conv1d":
        _one_dimensional(builder, node, result, read, fmt, name, arrays, bits)
    else:
        builder.emit(result, op, [read], fmt, layer=name, accumulator_shift=bits, **arrays, **_geometry(node))


def finest_requantization(
    node: Node, read: TensorFormat, scale: np.ndarray, shift: np.ndarray, gain: np.ndarray
) -> tuple[dict[str, np.ndarray], int]:
    """`requantization` with accumulators shifted left as far as is safe, and by how much.

    The rounded bias of a layer of few bits would else be off by up to half a product, which is a good part of a step of
    what it writes.
    """
    unit = read.scale * scale * np.abs(gain)
    real = np.abs(np.divide(shift, unit, out=np.zeros_like(shift), where=unit > 0)).clip(max=_LARGEST_BIAS)
    bits = spare_bits(node, read, real, most=_MOST_SHIFT)
    return requantization(read.scale * scale / 2**bits, shift, gain, node.format), bits


def requantization(scale: np.ndarray, shift: np.ndarray, gain: np.ndarray, fmt: TensorFormat) -> dict[str, np.ndarray]:
    """Integer bias, multiplier and exponent per channel: (sum * scale) * gain + shift as integers of `fmt`.

    A gain so small that the bias would leave 30 bits is made larger until it fits: what the sum then adds is far below
    one step.
    """
    least = np.abs(shift) / (scale * _LARGEST_BIAS)
    gain = np.where(np.abs(gain) < least, np.where(gain < 0, -least, least), gain)
    unit = scale * gain
    bias = np.rint(np.divide(shift, unit, out=np.zeros_like(shift), where=unit != 0)).astype(np.int64)
    numbers = [dyadic(float(factor)) for factor in unit / fmt.scale]
    return {
        "bias": bias.clip(-(2**31) + 1, 2**31 - 1).astype(np.int32),
        "multiplier": np.array([n.multiplier for n in numbers], dtype=np.int32),
        "exponent": np.array([n.exponent for n in numbers], dtype=np.int32),
    }


def integer_weight(
    name: str, weight: IntegerWeight, *, transposed: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, zero points `[out]` and scales `[out]`.

    Raises:
        InputError: scales of groups within a channel, or codes wider than 8 bits and their zero point allow.
    """
    if weight.layout.granularity == "group":
        raise InputError(
            f"layer {name!r}: weights have a scale for each group of {weight.layout.group_size}; the integer engine "
            "has one a channel: choose a format without groups (int4, not int4_g32) and "
            "quantization.weight_granularity 'channel' or 'tensor'"
        )
    codes = weight.codes.numpy().astype(np.int16)
    _, scale, zero = weight.blocks[0]
    channels = codes.shape[1] * weight.layout.transposed_groups if transposed else codes.shape[0]
    flat = scale.reshape(-1).double().numpy(), zero.reshape(-1).numpy().astype(np.int32)
    scales, zeros = (np.broadcast_to(part, (channels,)).copy() for part in flat)
    if codes.min() >= -128 and codes.max() <= 127:
        codes = codes.astype(np.int8)
    return codes, zeros, scales


def _input(builder: Builder, node: FxNode) -> Value:
    source: Any = node.args[0]
    quantizer = builder.graph.layer(node).input
    special = builder.quantized(source, quantizer)
    if special is not None:
        return special
    fmt = code_format(quantizer)
    if fmt is None:
        raise InputError(
            f"layer {builder.graph.layers[node]!r} reads {builder.graph.layer(node).precision.activation}; the integer "
            "engine reads 8 bits and fewer"
        )
    return builder.get(source, fmt)


def _bias(builder: Builder, node: FxNode, channels: int) -> np.ndarray:
    held: Any = node.args[2] if len(node.args) > 2 else None
    if held is None:
        return np.zeros(channels)
    return np.asarray(builder.graph.constants[held].detach().double().numpy())


def _pair(value: Any, default: int) -> list[int]:
    values = [default] if value is None else [value] if isinstance(value, int) else list(value)
    return [int(v) for v in (values * 2 if len(values) == 1 else values)]


def _argument(node: FxNode, index: int, default: Any = None) -> Any:
    return node.args[index] if len(node.args) > index else default


def _geometry(node: FxNode) -> dict[str, Any]:
    weight: Any = node.args[1]
    kernel = [int(size) for size in weight.meta["val"].shape[2:]]
    transposed = op_name(node) == "conv_transpose2d"
    groups = int(_argument(node, 6, 1))
    dilation = _pair(_argument(node, 7 if transposed else 5), 1)
    padding = _padding(_argument(node, 4, 0), kernel, dilation)
    if not transposed:
        groups = int(_argument(node, 6, 1))
    return {
        "kernel": kernel,
        "stride": _pair(_argument(node, 3), 1),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }


def _padding(given: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """`[top, left, bottom, right]`; `same` puts the odd one behind."""
    if given == "valid":
        return [0, 0, 0, 0]
    if given == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2]
    pair = _pair(given, 0)
    return [*pair, *pair]


def _one_dimensional(
    builder: Builder,
    node: FxNode,
    result: FxNode,
    read: Value,
    fmt: TensorFormat,
    name: str,
    arrays: dict[str, np.ndarray],
    bits: int,
) -> None:
    """A convolution over one dimension is one over two, the first of which has length 1."""
    (channels, length), (outputs, after) = builder.integer_node(read).shape, builder.shape(result)
    weight: Any = node.args[1]
    kernel, dilation = [int(weight.meta["val"].shape[2])], [_pair(_argument(node, 5), 1)[0]]
    given = _argument(node, 4, 0)
    both = [kernel[0], kernel[0]], [dilation[0], dilation[0]]
    padding = _padding(given, *both)
    geometry = {
        "kernel": [1, kernel[0]],
        "stride": [1, _pair(_argument(node, 3), 1)[0]],
        "padding": [0, padding[1], 0, padding[3]],
        "dilation": [1, dilation[0]],
        "groups": int(_argument(node, 6, 1)),
        "accumulator_shift": bits,
    }
    flat = builder.add(Node(f"{node.name}_in", "reshape", (read.node,), (channels, 1, length), read.format))
    wide = {**arrays, "weight": arrays["weight"][:, :, None, :]}
    sums = builder.add(Node(f"{node.name}_2d", "conv", (flat.node,), (outputs, 1, after), fmt, geometry, wide, name))
    builder.emit(result, "reshape", [sums], fmt)


def batch_norm(builder: Builder, node: FxNode) -> tuple[np.ndarray, np.ndarray]:
    """Factor and shift of a batch norm, per channel."""
    parts: list[Any] = list(node.args[1:5])
    gamma, beta, mean, variance = (None if p is None else builder.graph.constants[p].double() for p in parts)
    assert mean is not None
    assert variance is not None
    factor = (variance + float(_argument(node, 6, 1e-5))).rsqrt()
    factor = factor if gamma is None else factor * gamma
    shift = -mean * factor if beta is None else beta - mean * factor
    return factor.numpy(), shift.numpy()


def lower_batch_norm(builder: Builder, node: FxNode, result: FxNode) -> None:
    """A batch norm: into the layer before it, or where others read that too, a factor and a shift per channel."""
    source: Any = node.args[0]
    factor, shift = batch_norm(builder, node)
    if folds(builder, source):
        lower_layer(builder, source, result=result, norm=(factor, shift))
        return
    value = builder.value(source)
    fmt = builder.wanted.of(result)
    ones: np.ndarray = np.ones((len(factor), 1, 1, 1), dtype=np.int8)
    weights = {"weight": ones, "weight_zero": np.zeros(len(factor), dtype=np.int32)}
    draft = Node(result.name, "conv", (), (), fmt, {"groups": len(factor)}, weights)
    parts, bits = finest_requantization(draft, value.format, np.ones(len(factor)), shift, factor)
    arrays = weights | parts
    shape = builder.shape(result)
    square = (*shape, 1, 1)[:3] if len(shape) < 3 else shape
    flat = value
    if square != shape:
        flat = builder.add(Node(f"{result.name}_in", "reshape", (value.node,), square, value.format))
    geometry = {"kernel": [1, 1], "stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": len(factor)}
    geometry["accumulator_shift"] = bits
    made = builder.add(Node(result.name, "conv", (flat.node,), square, fmt, geometry, arrays))
    if square != shape:
        made = builder.add(Node(result.name, "reshape", (made.node,), shape, fmt))
    builder.bind(result, made)


def folds(builder: Builder, source: FxNode) -> bool:
    """Whether `source` is a layer that a batch norm alone reads."""
    users = list(source.users)
    return (
        source in builder.graph.layers
        and len(users) == 1
        and op_name(users[0]) == "_native_batch_norm_legit_no_training"
        and (op_name(source) != "linear" or source.meta["val"].dim() == 2)
    )


def operand(builder: Builder, leaf: Any, node: FxNode) -> Value:
    """A tensor of the graph, or a parameter as wide integers."""
    held = builder.graph.constants.get(leaf)
    if held is None:
        return builder.value(leaf)
    fmt = symmetric(float(held.abs().max()), WIDE_BITS)
    tensor = held.detach().double()
    if tensor.dim() == node.meta["val"].dim():
        if tensor.shape[0] != 1:
            raise InputError(f"{describe(node)} has a parameter with one entry a sample; integers need one for all")
        tensor = tensor[0]
    value = np.rint(tensor.numpy() / fmt.scale).clip(fmt.low, fmt.high).astype(np.int16)
    return builder.add(Node(leaf.name, "constant", (), value.shape, fmt, {}, {"value": value}))
