"""From an exported ATen graph to a `Network`: one walk over the operators in execution order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from haq.trace import ops
from haq.trace.layers import add_call, describe_call
from haq.trace.leftovers import Leftovers
from haq.trace.memory import Memory, Storage, Value
from haq.trace.names import ModelNames
from haq.values.errors import InputError
from haq.values.kinds import KINDS
from haq.values.network import FLOAT_WRITER, Join, LayerSpec, Network, Tensor


def build_network(
    graph: Graph,
    names: ModelNames,
    *,
    parameters: dict[str, str],
    inputs: set[str],
    batch: int,
    held: Mapping[str, tuple[str, torch.Tensor]] = MappingProxyType({}),
) -> Network:
    """Walk `graph` in execution order.

    Args:
        graph: of ATen operators, flat, with example values in `meta["val"]`.
        names: of the model's modules.
        parameters: placeholder -> qualified name of the parameter that it stands for.
        inputs: the placeholders of the network's inputs.
        batch: leading dimension of the first input; it is divided out.
        held: placeholder -> name and value of each parameter and buffer, to count what stays in float.

    Raises:
        InputError: weights that no quantizable layer holds, data-dependent shapes, inputs without batch dimension.
    """
    walk = _Walk(graph, names, batch)
    for node in graph.nodes:
        if node.op == "placeholder":
            walk.placeholder(node, parameter=parameters.get(node.name), is_input=node.name in inputs)
        elif node.op == "call_function":
            walk.operator(node)
    walk.refuse_unsupported()
    left = Leftovers(graph, names, walk.calls, held, walk.values, batch=batch)
    return replace(walk.network(), float_parts=left.parts())


class _Walk:
    """State of the walk: what each node holds, and the network as found so far."""

    def __init__(self, graph: Graph, names: ModelNames, batch: int) -> None:
        self._names, self._batch = names, batch
        self._memory = Memory(graph)
        self.values: dict[Node, Value] = {}
        self._parameters: dict[Node, frozenset[str]] = {}  # constant node -> the parameters that it is computed from
        self._verbatim: dict[Node, str] = {}  # node that is a parameter, at most cast or copied
        self._bases: dict[Node, Node] = {}  # view -> the node whose memory it shows
        self._layers: dict[str, LayerSpec] = {}
        self._reads: dict[str, tuple[Value, dict[str, None]]] = {}
        self._joins: list[Join] = []
        self.calls: dict[Node, str] = {}
        """Each node that computes a layer -> that layer; all others stay in float."""
        self._unsupported: dict[str, str] = {}

    def network(self) -> Network:
        tensors = tuple(
            Tensor(name, value.producer, tuple(consumers), value.elements)
            for name, (value, consumers) in self._reads.items()
        )
        shared = self._names.shared_weights(self._layers)
        for group in shared:  # counted once: by the first that multiplies with it
            counts = next(name for name in group if not KINDS[self._layers[name].kind].gathers)
            for name in group:
                if name != counts:
                    self._layers[name] = replace(self._layers[name], params=0)
        layers = tuple(self._layers.values())
        return Network(layers, tensors, tuple(self._joins), self._memory.steps, shared_weights=shared)

    def refuse_unsupported(self) -> None:
        if self._unsupported:
            (_, message), *more = self._unsupported.items()
            raise InputError(message + (f"; likewise {', '.join(name for name, _ in more)}" if more else ""))

    # Nodes

    def placeholder(self, node: Node, *, parameter: str | None, is_input: bool) -> None:
        value = node.meta.get("val")
        if is_input and isinstance(value, torch.Tensor):
            batched = value.dim() > 0 and value.shape[0] == self._batch
            elements = value.numel() // self._batch if batched else value.numel()
            numeric = value.is_floating_point() or value.is_complex()
            storage = self._memory.allocate(node, None, elements, step=None)
            self.values[node] = Value(node.name, None, -1, elements, batched, numeric, storage)
        elif parameter is not None:
            self._parameters[node] = frozenset({parameter})
            self._verbatim[node] = parameter

    def operator(self, node: Node) -> None:
        if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(node.meta.get("val"))):
            return
        layer = self._called_layer(node)
        if layer is not None:
            self._call_layer(node, layer)
            return
        self._check_weights(node)
        if ops.is_mutation(node):
            self._mutate(node)
            return
        operands = self._operands(node)
        source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if ops.is_view(node) and source is not None:
            self._bases[node] = self._bases.get(source, source)
        if not operands:
            self._fold_constant(node, node.all_input_nodes)
            if source in self._verbatim and ops.is_identity(node) and _shape(node) == _shape(source):
                self._verbatim[node] = self._verbatim[source]
        elif ops.is_identity(node) and source in self.values:
            self.values[node] = self._show(node, self.values[source])
        else:
            self.values[node] = self._compute(node, operands)

    def _operands(self, node: Node) -> list[Value]:
        if ops.ignores_values(node):
            return []
        return [self.values[source] for source in node.all_input_nodes if source in self.values]

    def _fold_constant(self, node: Node, sources: Iterable[Node]) -> None:
        """`node` holds something computed from parameters and fixed tensors only."""
        found = [self._parameters[source] for source in sources if source in self._parameters]
        if found:
            self._parameters[node] = frozenset().union(*found)

    def _show(self, node: Node, source: Value) -> Value:
        """A view or copy of `source`."""
        elements, numeric, batched = self._size(node, [source])
        if numeric and not source.numeric:
            return self._compute(node, [source])
        if source.storage is not None:
            self._memory.share(source.storage, node)
        name = source.name if elements == source.elements else node.name
        return replace(source, name=name, elements=elements, numeric=numeric, batched=batched)

    def _compute(self, node: Node, operands: Sequence[Value]) -> Value:
        owner = _owner(operands)
        elements, numeric, batched = self._size(node, operands)
        storage = None
        if numeric:
            self._join(node, ops.join_kind(node), operands, elements)
            writer = self._writer(node, operands, owner)
            storage = self._overwritable(node, operands, elements, writer)
            if storage is None:
                storage = self._memory.allocate(node, writer, elements, step=node.name)
            self._memory.share(storage, node)
        return Value(node.name, owner.producer, owner.written, elements, batched, numeric, storage)

    def _mutate(self, node: Node) -> None:
        """Write into the first argument, which may be a view: whoever reads the viewed tensor later sees it."""
        target = node.all_input_nodes[0]
        base = self._bases.get(target, target)
        before = [self.values[base]] if base in self.values else []
        operands = before + [self.values[n] for n in node.all_input_nodes[1:] if n in self.values]
        if not operands:
            self._fold_constant(base, (base, *node.all_input_nodes))
            return
        owner = _owner(operands)
        elements, numeric, batched = self._size(base, operands)
        storage = before[0].storage if before else None
        if numeric:
            writer = self._writer(node, operands, owner)
            self._join(node, ops.join_kind(node) if base is target else "concat", operands, elements)
            if storage is None:
                storage = self._memory.allocate(node, writer, elements, step=node.name)
                self._memory.share(storage, base)
            storage.producer = writer
        value = Value(node.name, owner.producer, owner.written, elements, batched, numeric, storage)
        self.values[base] = value
        for view in (target, node):
            if view is not base:
                self.values[view] = self._show(view, value)

    # Layers

    def _called_layer(self, node: Node) -> str | None:
        operands = ops.layer_operands(node)
        if operands is None:
            return None
        scope = self._names.scope(node)
        layer = self._names.layer(scope, self._verbatim.get(operands[1]))
        return None if layer is None or self._names.is_float(scope, layer) else layer

    def _call_layer(self, node: Node, name: str) -> None:
        operands = ops.layer_operands(node)
        assert operands is not None  # a node that calls a layer
        data = self._module_input(node, operands[0])
        value = self.values.get(data)
        batched = value is not None and value.batched
        batch = self._batch if batched else None
        call = describe_call(name, self._names.module(name), _shape(data), _shape(node), batch=batch)
        self.calls[node] = name
        self._layers[name] = add_call(self._layers[name], call) if name in self._layers else call
        if value is not None and value.numeric:
            self._reads.setdefault(value.name, (value, {}))[1][name] = None
        storage = self._memory.allocate(node, name, call.output_elements, step=name)
        written = self._memory.position(node)
        self.values[node] = Value(node.name, name, written, call.output_elements, batched, True, storage)

    def _module_input(self, node: Node, data: Node) -> Node:
        """What the module itself reads: before any padding or cast that it does on its own (`padding_mode`)."""
        call = _call_key(node)
        while data.op == "call_function" and _call_key(data) == call:
            sources = [source for source in data.all_input_nodes if source in self.values]
            if len(sources) != 1:
                break
            data = sources[0]
        return data

    def _check_weights(self, node: Node) -> None:
        """Note a weight that `node` multiplies activations with although no quantizable layer holds it."""
        if not self._operands(node):
            return
        scope = self._names.scope(node)
        for operand in ops.multiplied_operands(node):
            found = sorted(self._parameters.get(operand, ()))
            if found and not self._names.is_float(scope, *found):
                self._unsupported.setdefault(scope or found[0], self._names.refusal(scope, ops.op_name(node), found))

    # Joins and memory

    def _join(self, node: Node, kind: str, operands: Sequence[Value], elements: int) -> None:
        computed = [value for value in operands if value.numeric]
        if len({value.producer for value in computed}) < 2:
            return
        owner = _owner(computed)
        others = tuple((value.producer, value.elements) for value in computed if value is not owner)
        self._joins.append(Join(node.name, kind, owner.producer, others, elements))

    def _writer(self, node: Node, operands: Sequence[Value], owner: Value) -> str | None:
        """Whose activation format the result of `node` lies in memory in: the owner's, or float32.

        What is computed from a value in float32 is in float32, up to the next layer.
        """
        floats = any(value.storage is not None and value.storage.producer == FLOAT_WRITER for value in operands)
        in_float = floats or ops.stays_float(node) or self._names.is_float(self._names.scope(node))
        return FLOAT_WRITER if in_float else owner.producer

    def _overwritable(self, node: Node, operands: Sequence[Value], elements: int, writer: str | None) -> Storage | None:
        """Memory of an operand that `node` may overwrite: of the result's format and size, and read by nobody later."""
        if not ops.can_overwrite(node):
            return None
        for value in operands:
            storage = value.storage
            if (
                storage is not None
                and value.numeric
                and storage.producer == writer
                and elements == value.elements == storage.elements
                and self._memory.is_free(storage, node)
            ):
                return storage
        return None

    def _size(self, node: Node, operands: Iterable[Value]) -> tuple[int, bool, bool]:
        """Elements per sample of what `node` holds; whether they are numbers (not indices or masks); batched or not."""
        tensors = [leaf for leaf in tree_leaves(node.meta["val"]) if isinstance(leaf, torch.Tensor)]
        numbers = [tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
        counts = [tensor.numel() for tensor in numbers or tensors]
        if not all(isinstance(count, int) for count in counts):
            raise InputError(
                f"{self._names.describe(self._names.scope(node))} makes a tensor whose size depends on the data "
                f"({ops.op_name(node)}); make its shape depend on the shapes of the inputs only"
            )
        per_sample = [count // self._batch if count % self._batch == 0 else count for count in counts]
        batched = any(value.batched for value in operands) and any(count % self._batch == 0 for count in counts)
        return sum(per_sample if batched else counts), bool(numbers), batched


def _owner(operands: Sequence[Value]) -> Value:
    """The operand computed last, numbers before indices and masks."""
    return max(operands, key=lambda value: (value.numeric, value.written))


def _call_key(node: Node) -> str | None:
    """Identifies the innermost module call that `node` is part of."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack)) if stack else None


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)
