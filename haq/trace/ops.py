"""What an ATen operator does to the activations that pass through it, read off its schema, its tags and its name."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import Node

from haq.values.kinds import OPERATORS

LAYER_OPS = frozenset(OPERATORS)
"""The operators that the quantizable modules call."""


def layer_operands(node: Node) -> tuple[Node, Node] | None:
    """Data and weight of a call of a layer; `None` where the operator is none of a layer."""
    kind = OPERATORS.get(op_name(node))
    if kind is None:
        return None
    data, weight = node.args[1::-1] if kind.gathers else node.args[:2]
    return (data, weight) if isinstance(data, Node) and isinstance(weight, Node) else None


_ATTENTION = "scaled_dot_product_attention"
_PRODUCTS = ("mm", "bmm", "matmul", "mv", "dot", "vdot", "inner", "tensordot", "einsum", "linalg_multi_dot")
_ADDED_PRODUCTS = ("addmm", "addbmm", "baddbmm", "addmv")
_MATMULS = frozenset((*_PRODUCTS, *_ADDED_PRODUCTS, "chain_matmul", "_int_mm", "_scaled_mm", "_grouped_mm", _ATTENTION))
_CONVOLUTIONS = frozenset(f"{kind}{dims}d" for kind in ("conv", "conv_transpose") for dims in (1, 2, 3)) | {
    "conv_tbc",
    "convolution",
    "_convolution",
}
_RECURRENT = frozenset(
    ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
)
_MULTIPLIES = (
    _MATMULS
    | _CONVOLUTIONS
    | _RECURRENT
    | {"linear", "bilinear", "_trilinear", "_native_multi_head_attention", "_transformer_encoder_layer_fwd"}
)
_ADDED_OPERAND = {
    **dict.fromkeys(_ADDED_PRODUCTS, 0),
    **dict.fromkeys(("bilinear", _ATTENTION), 3),
    **dict.fromkeys(("linear", *_CONVOLUTIONS), 2),
}
"""Position of the operand that is added (bias, mask), not multiplied with."""

_JOIN_KINDS = {
    **dict.fromkeys(("add", "sub", "subtract", "rsub", "addcmul", "addcdiv"), "add"),
    **dict.fromkeys(("mul", "multiply", "div", "divide", "true_divide"), "mul"),
    **dict.fromkeys(
        ("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "copy", "index_put", "scatter"),
        "concat",
    ),
    **dict.fromkeys(_MATMULS, "matmul"),
}
_COPIES = frozenset(
    ("clone", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "_to_copy", "_unsafe_view")
)
_ROWWISE = frozenset(
    (
        "batch_norm",
        "instance_norm",
        "layer_norm",
        "group_norm",
        "rms_norm",
        "softmax",
        "log_softmax",
        "hardswish",
        "prelu",
    )
)
"""Operators that may overwrite their input although torch does not tag them as pointwise."""


_IN_FLOAT = (
    _MULTIPLIES
    | frozenset(("softmax", "log_softmax", "_softmax", "_log_softmax", "embedding", "embedding_bag"))
    | frozenset(("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm", "rms_norm"))
)
"""Operators that runtimes execute in float32 where they are no quantized layer."""


def op_name(node: Node) -> str:
    """The operator's name without namespace, overload and in-place underscore: `add` for `aten.add_.Tensor`."""
    if not isinstance(node.target, OpOverload):
        return getattr(node.target, "__name__", str(node.target))
    name = str(node.target._schema.name).rpartition("::")[2]
    return name.rstrip("_") if is_mutation(node) else name


def ignores_values(node: Node) -> bool:
    """Whether only the shapes of the operands count (`zeros_like`, `new_full`): the result is a constant."""
    name = op_name(node)
    return name.endswith("_like") or name.startswith("new_")


def is_mutation(node: Node) -> bool:
    """Whether the operator writes into its first argument (`relu_`, `copy_`)."""
    return isinstance(node.target, OpOverload) and bool(node.target._schema.is_mutable)


def is_view(node: Node) -> bool:
    """Whether the result is memory of the first argument."""
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, OpOverload) or is_mutation(node):
        return False
    returns = node.target._schema.returns
    return bool(returns) and returns[0].alias_info is not None


def is_identity(node: Node) -> bool:
    """Whether the result holds the values of the first argument: a view, or a copy that a runtime leaves out."""
    return is_view(node) or op_name(node) in _COPIES


def can_overwrite(node: Node) -> bool:
    """Whether a kernel may write the result over an operand of the same size."""
    pointwise = isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags
    return pointwise or op_name(node) in _ROWWISE


def stays_float(node: Node) -> bool:
    """Whether the operator, which is no layer, is executed in float32, whatever the formats of what it reads."""
    return op_name(node) in _IN_FLOAT


def recurrent_weights(node: Node) -> list[Node]:
    """The weight matrices that a recurrent operator multiplies with at every time step; none where it is no such."""
    if op_name(node) not in _RECURRENT:
        return []
    return [source for source in node.all_input_nodes[1:] if _dimensions(source) == 2 and source.op == "placeholder"]


def _dimensions(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0


def normalises_batches(node: Node) -> bool:
    """Whether it is a batch norm, which a runtime merges into the layer right before it."""
    return op_name(node) in ("batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")


def join_kind(node: Node) -> str:
    """`add`, `mul`, `concat`, `matmul` (attention included) or `other`."""
    return _JOIN_KINDS.get(op_name(node), "other")


def multiplied_operands(node: Node) -> Iterator[Node]:
    """The operands that the operator multiplies with: where a weight would stand.

    All operands of an operator that is not torch's own, since nothing is known about it.
    """
    name = op_name(node)
    foreign = isinstance(node.target, HigherOrderOperator) or (
        isinstance(node.target, OpOverload) and node.target.namespace not in ("aten", "prims")
    )
    if foreign:
        yield from node.all_input_nodes
    elif name in _MULTIPLIES:
        for position, argument in enumerate(node.args):
            if position != _ADDED_OPERAND.get(name):
                entries = argument if isinstance(argument, list | tuple) else (argument,)
                yield from (entry for entry in entries if isinstance(entry, Node))
