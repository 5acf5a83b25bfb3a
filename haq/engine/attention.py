"""Lowering of transformers' operators: attention, softmax, GELU, layer normalisation, embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch.fx import Node as FxNode

from haq.engine import transformer_specification as specification
from haq.engine.dyadic import dyadic
from haq.engine.formats import WIDE_BITS, affine, symmetric
from haq.engine.graph import Node, TensorFormat
from haq.engine.layers import requantization
from haq.engine.lower import Builder, Value, describe, factors
from haq.values.errors import InputError

_SHARE_BITS = 8
_TABLE_BITS = 15
_ERF_FACTOR = 0.2888


def gelu(builder: Builder, node: FxNode, fmt: TensorFormat) -> None:
    """i-GELU of 8-bit integers."""
    source: Any = node.args[0]
    value = builder.converted(builder.value(source), builder.wanted.narrow(source))
    scale = value.format.scale
    unit = scale**3 * _ERF_FACTOR / 4
    constants = specification.gelu_constants(scale)
    if 2 * constants[1] * value.format.largest >= 2**31:
        raise InputError(f"{describe(node)}: its input is too fine for the polynomial; use nonlinear = 'table'")
    builder.emit(node, "gelu", [value], fmt, constants=constants, **factors(unit / fmt.scale))


def softmax_value(builder: Builder, name: str, value: Value, shape: tuple[int, ...]) -> Value:
    """The softmax of `value` over its last dimension, as 8-bit shares."""
    fmt = TensorFormat(0, 2**_SHARE_BITS - 1, 0, 2.0**-_SHARE_BITS)
    arrays: dict[str, np.ndarray] = {}
    attributes: dict[str, Any] = {}
    if builder.options.nonlinear == "table":
        distance = np.arange(value.format.high - value.format.low + 1, dtype=np.float64)
        arrays["table"] = np.rint(2.0**_TABLE_BITS * np.exp(-distance * value.format.scale)).astype(np.int32)
    else:
        attributes["constants"] = specification.exp_constants(value.format.scale)
        _, b, c = attributes["constants"]
        if b * b + c >= 2**31:
            raise InputError(f"{name}: softmax's input is too fine for the polynomial; use nonlinear = 'table'")
    return builder.add(Node(name, "softmax", (value.node,), shape, fmt, attributes, arrays))


def _softmax(builder: Builder, node: FxNode) -> None:
    source: Any = node.args[0]
    dim: Any = node.args[1]
    if dim % source.meta["val"].dim() != source.meta["val"].dim() - 1:
        raise InputError(f"{describe(node)} is not over the last dimension; transpose before it")
    value = builder.converted(builder.value(source), _logits(*builder.wanted.range(source), builder))
    builder.bind(node, softmax_value(builder, node.name, value, builder.shape(node)))


def _logits(low: float, high: float, builder: Builder) -> TensorFormat:
    """8 bits where a table holds every distance, 12 for the polynomial."""
    return affine(low, high, 8 if builder.options.nonlinear == "table" else 12)


def _layer_norm(builder: Builder, node: FxNode) -> None:
    source: Any = node.args[0]
    sizes: Any = node.args[1]
    if len(sizes) != 1:
        raise InputError(f"{describe(node)} is over {len(sizes)} dimensions; integers are normalised over the last one")
    count = int(sizes[0])
    held = [builder.graph.constants[p] if isinstance(p, FxNode) else None for p in (*node.args[2:4], None, None)[:2]]
    gamma = np.ones(count) if held[0] is None else held[0].double().numpy()
    beta = np.zeros(count) if held[1] is None else held[1].double().numpy()
    epsilon: Any = node.args[4] if len(node.args) > 4 else 1e-5
    value, fmt = builder.value(source), builder.wanted.of(node)
    if value.format.largest >= 2**15 or count > 4096:
        value = builder.converted(value, symmetric(builder.wanted.wide(source).scale * (2**15 - 1), WIDE_BITS))
    unit = np.full(count, 2.0**-specification.NORM_BITS)
    arrays = requantization(unit, beta, gamma, fmt)
    spread = round(float(epsilon) * count**2 / value.format.scale**2)
    parts: dict[str, Any] = {"epsilon": min(spread, 2**62), **arrays}
    builder.emit(node, "layer_norm", [value], fmt, **parts)


def matmul_value(builder: Builder, name: str, a: Value, b: Value, shape: tuple[int, ...], fmt: TensorFormat) -> Value:
    """The product of two values, `[..., n, k]` and `[..., k, m]`."""
    factor = dyadic(a.format.scale * b.format.scale / fmt.scale)
    attributes = {"multipliers": [factor.multiplier], "exponents": [factor.exponent]}
    return builder.add(Node(name, "matmul", (a.node, b.node), shape, fmt, attributes))


def _matmul(builder: Builder, node: FxNode) -> None:
    left, right = node.args[:2]
    if not isinstance(left, FxNode) or not isinstance(right, FxNode) or right in builder.graph.constants:
        raise InputError(f"{describe(node)} multiplies with a parameter; make it an nn.Linear")
    a, b = (builder.converted(builder.value(source), builder.wanted.narrow(source)) for source in (left, right))
    fmt = builder.wanted.of(node)
    builder.bind(node, matmul_value(builder, node.name, a, b, builder.shape(node), fmt))


def _attention(builder: Builder, node: FxNode) -> None:
    """softmax(q k^T / sqrt(d)) v: 8-bit products, 8-bit shares."""
    masked = [a for a in node.args[3:] if a not in (None, 0.0, False)]
    given = {key: value for key, value in node.kwargs.items() if key != "scale" and value not in (None, 0.0, False)}
    if masked or given:
        raise InputError(f"{describe(node)} has a mask, dropout or causal order; the integer engine attends to all")
    query, key, values = (source for source in node.args[:3] if isinstance(source, FxNode))
    q, k, v = (builder.converted(builder.value(s), builder.wanted.narrow(s)) for s in (query, key, values))
    depth = builder.shape(query)[-1]
    given_scale: Any = node.kwargs.get("scale")
    scale = 1 / math.sqrt(depth) if given_scale is None else float(given_scale)
    rank = len(builder.shape(key))
    turned = [*range(rank - 2), rank - 1, rank - 2]
    shape = tuple(builder.shape(key)[axis] for axis in turned)
    transposed = builder.add(Node(f"{node.name}_keys", "transpose", (k.node,), shape, k.format, {"axes": turned}))
    low, high = builder.graph.scores[node]
    logits = _logits(low, high, builder)
    square = (*builder.shape(query)[:-1], builder.shape(key)[-2])
    products = matmul_value(builder, f"{node.name}_scores", q, transposed, square, logits)
    scaled = Value(products.node, TensorFormat(logits.low, logits.high, logits.zero_point, logits.scale * scale))
    shares = softmax_value(builder, f"{node.name}_softmax", scaled, square)
    fmt = builder.wanted.of(node)
    builder.bind(node, matmul_value(builder, node.name, shares, v, builder.shape(node), fmt))


def _embedding(builder: Builder, node: FxNode) -> None:
    weight, indices = node.args[:2]
    fmt = builder.wanted.of(node)
    table = builder.graph.constants[weight].double().numpy()  # type: ignore[index]
    codes = (np.rint(table / fmt.scale) + fmt.zero_point).clip(fmt.low, fmt.high).astype(np.int16)
    builder.emit(node, "embedding", [builder.value(indices)], fmt, table=codes)  # type: ignore[arg-type]


LOWERINGS: Mapping[str, Callable[[Builder, FxNode], None]] = {
    "softmax": _softmax,
    "_softmax": _softmax,
    "layer_norm": _layer_norm,
    "matmul": _matmul,
    "bmm": _matmul,
    "scaled_dot_product_attention": _attention,
    "embedding": _embedding,
}
