"""Lowering pools, joins, and the operators that only move values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.fx import Node as FxNode

from haq.engine.captured import op_name
from haq.engine.graph import Node
from haq.engine.layers import lower_batch_norm, operand
from haq.engine.lower import Builder, describe, factors
from haq.values.errors import InputError

BATCH_NORM = "_native_batch_norm_legit_no_training"


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return [int(v) for v in (values * 2 if len(values) == 1 else values)]


def _pool_geometry(node: FxNode) -> dict[str, Any]:
    args = list(node.args)
    kernel = _pair(args[1])
    stride = _pair(args[2]) if len(args) > 2 and args[2] else kernel
    padding = _pair(args[3]) if len(args) > 3 else [0, 0]
    return {"kernel": kernel, "stride": stride, "padding": [*padding, *padding], "dilation": [1, 1]}


def _max_pool(builder: Builder, node: FxNode) -> None:
    source: Any = node.args[0]
    geometry = _pool_geometry(node)
    if len(node.args) > 4:
        geometry["dilation"] = _pair(node.args[4])
    value = builder.value(source)
    builder.emit(node, "max_pool", [value], value.format, **geometry)


def _average_pool(builder: Builder, node: FxNode) -> None:
    args = list(node.args)
    if (len(args) > 4 and args[4]) or (len(args) > 6 and args[6] is not None):
        raise InputError(f"{describe(node)}: ceil_mode and divisor_override have no integer form; leave them out")
    source: Any = args[0]
    whole = bool(args[5]) if len(args) > 5 else True
    value, fmt = builder.value(source), builder.wanted.of(node)
    parts = factors(value.format.scale / fmt.scale)
    builder.emit(node, "average_pool", [value], fmt, count_include_pad=int(whole), **_pool_geometry(node), **parts)


def _adaptive_pool(builder: Builder, node: FxNode) -> None:
    source: Any = node.args[0]
    value, fmt = builder.value(source), builder.wanted.of(node)
    inside, outside = builder.shape(source)[-2:], builder.shape(node)[-2:]
    if any(a % b for a, b in zip(inside, outside, strict=True)):
        raise InputError(f"{describe(node)}: {inside} is no multiple of {outside}; pool with equal windows")
    kernel = [a // b for a, b in zip(inside, outside, strict=True)]
    geometry: dict[str, Any] = {"kernel": kernel, "stride": kernel, "padding": [0] * 4, "dilation": [1, 1]}
    parts = factors(value.format.scale / fmt.scale)
    builder.emit(node, "average_pool", [value], fmt, count_include_pad=1, **geometry, **parts)


def _mean(builder: Builder, node: FxNode) -> None:
    source: Any = node.args[0]
    dims: Any = node.args[1] if len(node.args) > 1 else None
    rank = source.meta["val"].dim()
    axes = sorted((d % rank) - 1 for d in (dims if dims else range(rank)))
    if min(axes) < 0:
        raise InputError(f"{describe(node)} is a mean over the batch; integers are computed a sample at a time")
    value, fmt = builder.value(source), builder.wanted.of(node)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(builder.shape(source)))
    parts = {"axes": axes, **factors(value.format.scale / fmt.scale)}
    made = builder.add(Node(node.name, "mean", (value.node,), kept, fmt, parts))
    shape = builder.shape(node)
    builder.bind(node, made if kept == shape else builder.add(Node(node.name, "reshape", (made.node,), shape, fmt)))


def _concat(builder: Builder, node: FxNode) -> None:
    sources: Any = node.args[0]
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    axis = dim % node.meta["val"].dim() - 1
    if axis < 0:
        raise InputError(f"{describe(node)} joins samples of the batch; integers are computed a sample at a time")
    values = [operand(builder, source, node) for source in sources]
    fmt = builder.wanted.of(node)
    builder.emit(node, "concat", values, fmt, axis=axis, **factors(*(v.format.scale / fmt.scale for v in values)))


def _same(builder: Builder, node: FxNode) -> None:
    source: Any = node.args[0]
    builder.bind(node, builder.value(source))


def _reshape(builder: Builder, node: FxNode) -> None:
    source: Any = node.args[0]
    value, shape = builder.value(source), builder.shape(node)
    if math.prod(shape) != math.prod(builder.shape(source)):
        raise InputError(f"{describe(node)} repeats or mixes samples; the integer engine keeps each by itself")
    if shape == builder.shape(source):
        builder.bind(node, value)
    else:
        builder.emit(node, "reshape", [value], value.format)


def _permute(builder: Builder, node: FxNode) -> None:
    source: Any = node.args[0]
    rank = source.meta["val"].dim()
    order = list(range(rank))
    if op_name(node) == "permute":
        dims: Any = node.args[1]
        order = [d % rank for d in dims]
    else:
        a, b = (int(d) % rank for d in (node.args[1:3] or (0, 1)))  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
    if order[0] != 0:
        raise InputError(f"{describe(node)} moves the batch; the integer engine needs it as the first dimension")
    value = builder.value(source)
    builder.emit(node, "transpose", [value], value.format, axes=[d - 1 for d in order[1:]])


def _cut(builder: Builder, node: FxNode) -> None:
    """`slice`, `select`, and one part of a split."""
    source: Any = node.args[0]
    name = op_name(node)
    if name == "getitem" and op_name(source) == BATCH_NORM:
        lower_batch_norm(builder, source, node)
        return
    start, step = 0, 1
    if name == "getitem":
        split, index = source, int(node.args[1])  # type: ignore[arg-type]
        source, sizes, dim = split.args[0], split.args[1], split.args[2] if len(split.args) > 2 else 0
        start = index * sizes if isinstance(sizes, int) else sum(sizes[:index])
    else:
        dim = node.args[1] if len(node.args) > 1 else 0
        start = int(node.args[2] or 0) if len(node.args) > 2 else 0  # type: ignore[arg-type]
        step = int(node.args[4]) if len(node.args) > 4 else 1  # type: ignore[arg-type]
    rank = source.meta["val"].dim()
    axis = dim % rank - 1
    whole = builder.shape(source)
    if axis < 0:
        if tuple(node.meta["val"].shape) == tuple(source.meta["val"].shape):
            _same(builder, node)
            return
        raise InputError(f"{describe(node)} takes samples out of the batch; the integer engine keeps each by itself")
    start = start + whole[axis] if start < 0 else start
    value, shape = builder.value(source), builder.shape(node)
    kept = (*whole[:axis], 1, *whole[axis + 1 :]) if name == "select" else shape
    parts = {"axis": axis, "start": min(start, whole[axis]), "step": step}
    made = builder.add(Node(node.name, "cut", (value.node,), kept, value.format, parts))
    same = kept == shape
    builder.bind(node, made if same else builder.add(Node(node.name, "reshape", (made.node,), shape, value.format)))


def _pad(builder: Builder, node: FxNode) -> None:
    source: Any = node.args[0]
    sizes: Any = node.args[1]
    mode = node.args[2] if len(node.args) > 2 and isinstance(node.args[2], str) else "constant"
    fill = node.args[-1] if len(node.args) > (3 if mode != "constant" or len(node.args) > 3 else 2) else 0
    fill = 0 if fill is None or isinstance(fill, str) else fill
    if mode != "constant" or float(fill) != 0 or min(sizes) < 0:  # type: ignore[arg-type]
        raise InputError(f"{describe(node)}: integers are padded with zeros only; use padding_mode = 'zeros'")
    value, rank = builder.value(source), len(builder.shape(source))
    pairs = [[int(sizes[2 * i]), int(sizes[2 * i + 1])] for i in range(len(sizes) // 2)]
    padding = [[0, 0]] * (rank - len(pairs)) + pairs[::-1]
    builder.emit(node, "pad", [value], value.format, padding=padding)


def _split(builder: Builder, node: FxNode) -> None:
    """Its parts are cut out where they are read."""


LOWERINGS: Mapping[str, Callable[[Builder, FxNode], None]] = {
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "mean": _mean,
    "cat": _concat,
    "permute": _permute,
    "transpose": _permute,
    "t": _permute,
    "slice": _cut,
    "select": _cut,
    "getitem": _cut,
    "split": _split,
    "split_with_sizes": _split,
    "pad": _pad,
    "constant_pad_nd": _pad,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "expand"), _reshape),
    **dict.fromkeys(("clone", "contiguous", "dropout", "alias", "detach", "_to_copy", "lift_fresh_copy"), _same),
}
