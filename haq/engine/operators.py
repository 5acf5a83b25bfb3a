"""Lowering what stands between the layers, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node as FxNode

from haq.engine import attention
from haq.engine.captured import op_name
from haq.engine.formats import UNARY
from haq.engine.graph import TensorFormat
from haq.engine.layers import folds, lower_layer, operand
from haq.engine.lower import Builder, Value, describe, factors
from haq.engine.movement import BATCH_NORM
from haq.engine.movement import LOWERINGS as MOVEMENTS
from haq.values.errors import InputError

_ADD_SHIFT = {True: 20, False: 15}
"""As TFLite: 8-bit operands 20 bits to the left, wider ones 15."""


def lower_node(builder: Builder, node: FxNode) -> None:
    """Write the integer nodes of one operator.

    Raises:
        InputError: there are none for it; names it and where it is.
    """
    name = op_name(node)
    if node in builder.graph.layers:
        if not folds(builder, node):
            lower_layer(builder, node, result=node, norm=None)
        return
    if name == BATCH_NORM or (not node.all_input_nodes):
        return
    constant = _constant(builder, node)
    if constant is not None:
        builder.graph.constants[node] = constant  # type: ignore[index]
        return
    if name in UNARY:
        _table(builder, node)
    elif name in _LOWERINGS:
        _LOWERINGS[name](builder, node)
    else:
        raise InputError(
            f"{describe(node)} has no integer form; known: {', '.join(known_operators())}. Replace it, or deploy with "
            "--format onnx, whose float operator stands in for it"
        )


def known_operators() -> list[str]:
    """The operators that can be lowered."""
    return sorted({*_LOWERINGS, *UNARY, "conv1d", "conv2d", "conv_transpose2d", "linear", "batch_norm"})


def _constant(builder: Builder, node: FxNode) -> Tensor | None:
    """What `node` computes from parameters alone."""
    held = builder.graph.constants
    if any(source not in held for source in node.all_input_nodes):
        return None
    lookup: Callable[[Any], Any] = lambda leaf: held[leaf] if isinstance(leaf, FxNode) else leaf  # noqa: E731
    args, kwargs = torch.utils._pytree.tree_map(lookup, (node.args, node.kwargs))
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    return result if isinstance(result, Tensor) else None


def _add(builder: Builder, node: FxNode, sign: int = 1) -> None:
    a, b = node.args[:2]
    alpha = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
    if not isinstance(b, FxNode) or not isinstance(a, FxNode):
        _table(builder, node)
        return
    left, right = operand(builder, a, node), operand(builder, b, node)
    if alpha < 0:
        sign, alpha = -sign, -alpha
    scales = left.format.scale, right.format.scale * alpha
    add_values(builder, node, left, right, scales, signs=(1, sign))


def add_values(
    builder: Builder, node: FxNode, left: Value, right: Value, scales: tuple[float, float], *, signs: tuple[int, int]
) -> None:
    """Write the sum of two values whose scales are `scales`."""
    fmt = builder.wanted.of(node)
    twice = 2.0 * max(scales)
    # A product of 2^15 and 2^left must stay within 30 bits: the difference to a zero point has one bit more.
    spread = max(left.format.largest, right.format.largest)
    shift = _ADD_SHIFT[spread < 2**8] if spread < 2**15 else 14
    parts = factors(scales[0] / twice, scales[1] / twice, twice / (fmt.scale * 2**shift))
    builder.emit(node, "add", [left, right], fmt, left_shift=shift, signs=list(signs), **parts)


def _subtract(builder: Builder, node: FxNode) -> None:
    _add(builder, node, sign=-1)


def _multiply(builder: Builder, node: FxNode, *, inverse: bool = False) -> None:
    a, b = node.args[:2]
    if isinstance(a, FxNode) and not isinstance(b, FxNode):
        number = float(b)  # type: ignore[arg-type]
        number = 1.0 / number if inverse else number
        if number > 0:
            value = builder.value(a)
            fmt = value.format
            builder.bind(node, Value(value.node, TensorFormat(fmt.low, fmt.high, fmt.zero_point, fmt.scale * number)))
            return
    if not isinstance(a, FxNode) or not isinstance(b, FxNode):
        _table(builder, node)
        return
    if inverse:
        raise InputError(f"{describe(node)} divides two activations; the integer engine divides by numbers only")
    left, right, fmt = operand(builder, a, node), operand(builder, b, node), builder.wanted.of(node)
    builder.emit(node, "mul", [left, right], fmt, **factors(left.format.scale * right.format.scale / fmt.scale))


def _divide(builder: Builder, node: FxNode) -> None:
    _multiply(builder, node, inverse=True)


def _table(builder: Builder, node: FxNode) -> None:
    """A function of one variable by its values at 256 integers or fewer."""
    if len([s for s in node.all_input_nodes if s not in builder.graph.constants]) != 1:
        raise InputError(f"{describe(node)} reads several activations; no table can hold it")
    source = next(s for s in node.all_input_nodes if s not in builder.graph.constants)
    value = builder.value(source)
    if value.format.bits > 8:
        value = builder.get(source, builder.wanted.narrow(source))
    fmt, read = builder.wanted.of(node), value.format
    if op_name(node) == "gelu" and builder.options.nonlinear == "polynomial":
        attention.gelu(builder, node, fmt)
        return
    grid = (torch.arange(read.low, read.high + 1, dtype=torch.float64) - read.zero_point) * read.scale
    args = [grid if arg is source else arg for arg in node.args]
    if any(isinstance(arg, FxNode) for arg in args):
        raise InputError(f"{describe(node)} has a parameter beside its activation; no table can hold it")
    result = node.target(*args, **node.kwargs)  # type: ignore[operator]
    codes = np.rint(result.numpy() / fmt.scale) + fmt.zero_point
    table = codes.clip(fmt.low, fmt.high).astype(np.int16)
    builder.emit(node, "table", [value], fmt, table=table)


def _relu(builder: Builder, node: FxNode) -> None:
    builder.clamp(node, 0.0, None)


def _hardtanh(builder: Builder, node: FxNode) -> None:
    limits: list[Any] = [*node.args[1:]]
    limits += [-1.0, 1.0][len(limits) :]
    builder.clamp(node, float(limits[0]), float(limits[1]))


def _relu6(builder: Builder, node: FxNode) -> None:
    builder.clamp(node, 0.0, 6.0)


def _clamp(builder: Builder, node: FxNode) -> None:
    limits: list[Any] = [*node.args[1:], node.kwargs.get("min"), node.kwargs.get("max")]
    if len(node.args) > 1:
        limits = [*node.args[1:], None][:2]
    if op_name(node) == "clamp_max":
        limits = [None, limits[0]]
    builder.clamp(node, *(None if limit is None else float(limit) for limit in limits[:2]))


_LOWERINGS: Mapping[str, Callable[[Builder, FxNode], None]] = {
    "add": _add,
    "sub": _subtract,
    "mul": _multiply,
    "div": _divide,
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "pow": _table,
    **MOVEMENTS,
    **attention.LOWERINGS,
}
