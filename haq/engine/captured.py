"""The graph that is lowered: ATen operators, the layers among them, and the range of every value."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from haq.deployed.state import LayerState, ModelState, restore
from haq.quant.nested import tensors_in
from haq.trace.capture import export_program
from haq.values.errors import InputError

LAYER_OPS = ("conv1d", "conv2d", "conv_transpose2d", "linear")


def op_name(node: Node) -> str:
    """`relu` of `aten.relu.default`; `getitem` of Python's own."""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    return str(node.target if schema is None else schema.name).split("::")[-1]


@dataclass(frozen=True, eq=False)
class Captured:
    """A model with a policy as a graph.

    Attributes:
        nodes: in execution order, of inputs and operators.
        outputs: the nodes whose values the model returns.
        constants: placeholder -> parameter or buffer.
        layers: node -> the layer of the policy that it is a call of.
        seen: node -> least and greatest of its values on the calibration samples, computed as the quantized model does.
        scores: node of attention -> the same of the products of queries and keys within it.
        state: what was captured.
        batch: samples in `seen`.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[Node, ...]
    constants: Mapping[Node, Tensor]
    layers: Mapping[Node, str]
    seen: Mapping[Node, tuple[float, float]]
    scores: Mapping[Node, tuple[float, float]]
    state: ModelState
    batch: int

    def layer(self, node: Node) -> LayerState:
        return self.state.layers[self.layers[node]]


def captured(model: nn.Module, state: ModelState, inputs: Any) -> Captured:
    """Capture the float `model` with what `state` puts in, and run it on `inputs`.

    Raises:
        InputError: it cannot be captured.
    """
    arguments, keywords = _arguments(inputs)
    module = restore(model, state, hooks=False)
    program = export_program(module, arguments, keywords).run_decompositions({})
    signature = program.graph_signature
    held = {**program.state_dict, **program.constants}
    constants: dict[Node, Tensor] = {}
    weights: dict[Node, str] = {}
    free: list[Node] = []
    by_name = {node.name: node for node in program.graph.nodes}
    for spec in signature.input_specs:
        node = by_name[spec.arg.name]
        if spec.kind == InputKind.USER_INPUT:
            free.append(node)
        else:
            constants[node] = held[str(spec.target)].detach()
            weights[node] = str(spec.target)
    nodes = tuple(node for node in program.graph.nodes if node in free or node.op == "call_function")
    output = next(node for node in program.graph.nodes if node.op == "output")
    outputs = tuple(leaf for leaf in tree_leaves(output.args) if isinstance(leaf, Node))
    layers = {node: name for node in nodes if (name := _layer(node, weights, state)) is not None}
    tensors = list(tensors_in((arguments, tuple(keywords.values()))))
    values = dict(zip(free, tensors, strict=True)) | dict(constants)
    seen, scores = _observe(nodes, values, layers, state)
    return Captured(nodes, outputs, constants, layers, seen, scores, state, len(tensors[0]))


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def _layer(node: Node, weights: Mapping[Node, str], state: ModelState) -> str | None:
    if node.op != "call_function" or op_name(node) not in LAYER_OPS:
        return None
    name = weights.get(node.args[1], "").removesuffix(".weight")  # type: ignore[arg-type]
    return name if name in state.layers else None


def _observe(
    nodes: Sequence[Node], values: dict[Any, Any], layers: Mapping[Node, str], state: ModelState
) -> tuple[dict[Node, tuple[float, float]], dict[Node, tuple[float, float]]]:
    """The least and the greatest of every value, layers reading what their quantizers let through."""
    seen: dict[Node, tuple[float, float]] = {}
    scores: dict[Node, tuple[float, float]] = {}
    last = {source: node for node in nodes for source in node.all_input_nodes}
    for node in nodes:
        if node.op == "call_function":
            args, kwargs = tree_map(
                lambda leaf: values[leaf] if isinstance(leaf, Node) else leaf, (node.args, node.kwargs)
            )
            if node in layers:
                args = (state.layers[layers[node]].input(args[0]), *args[1:])
            if op_name(node) == "scaled_dot_product_attention":
                scores[node] = _range(args[0] @ args[1].transpose(-2, -1))
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            for source in node.all_input_nodes:
                if last[source] is node and source.op == "call_function":
                    del values[source]
        if isinstance(values[node], Tensor) and values[node].is_floating_point():
            seen[node] = _range(values[node])
    return seen, scores


def _range(value: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(value.detach())
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise InputError("the quantized model's values are not finite on the calibration data; check the checkpoint")
    return float(low), float(high)
