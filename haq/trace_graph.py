"""From an exported ATen graph to a `Network`: one walk over the operators in execution order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from haq import trace_ops as ops
from haq.errors import InputError
from haq.trace_names import LAYER_TYPES, ModelNames
from haq.types import Join, LayerSpec, Network, Step, Tensor


@dataclass(eq=False, slots=True)
class _Storage:
    """Activation memory; several values may share it."""

    producer: str | None
    elements: int
    last_read: int


@dataclass(frozen=True, eq=False, slots=True)
class _Value:
    """What a node holds.

    Attributes:
        name: of the node that computed it; kept by views and copies of the whole.
        producer: the layer that wrote it, `None` for network inputs.
        written: when: position of the producer's call, -1 for network inputs.
        elements: per sample.
        batched: whether the batch is a factor of its size.
        numeric: `False` for indices and masks, which have no activation format.
        storage: `None` for computed indices and masks, which are not counted as activations.
    """

    name: str
    producer: str | None
    written: int
    elements: int
    batched: bool
    numeric: bool
    storage: _Storage | None


def build_network(
    graph: Graph, names: ModelNames, *, parameters: dict[str, str], inputs: set[str], batch: int
) -> Network:
    """Walk `graph` in execution order.

    Args:
        graph: of ATen operators, flat, with example values in `meta["val"]`.
        names: of the model's modules.
        parameters: placeholder -> qualified name of the parameter that it stands for.
        inputs: the placeholders of the network's inputs.
        batch: leading dimension of the first input; it is divided out.

    Raises:
        InputError: weights that no quantizable layer holds, data-dependent shapes, inputs without batch dimension.
    """
    walk = _Walk(graph, names, batch)
    for position, node in enumerate(graph.nodes):
        if node.op == "placeholder":
            walk.placeholder(position, node, parameter=parameters.get(node.name), is_input=node.name in inputs)
        elif node.op == "call_function":
            walk.operator(position, node)
    walk.refuse_unsupported()
    return walk.network()


class _Walk:
    """State of the walk: what each node holds, and the network as found so far."""

    def __init__(self, graph: Graph, names: ModelNames, batch: int) -> None:
        self._names, self._batch = names, batch
        self._positions = {node: position for position, node in enumerate(graph.nodes)}
        self._values: dict[Node, _Value] = {}
        self._parameters: dict[Node, frozenset[str]] = {}  # constant node -> the parameters that it is computed from
        self._verbatim: dict[Node, str] = {}  # node that is a parameter, at most cast or copied
        self._bases: dict[Node, Node] = {}  # view -> the node whose memory it shows
        self._alive: list[_Storage] = []
        self._layers: dict[str, LayerSpec] = {}
        self._reads: dict[str, tuple[_Value, dict[str, None]]] = {}
        self._joins: list[Join] = []
        self._steps: list[Step] = []
        self._unsupported: dict[str, str] = {}

    def network(self) -> Network:
        tensors = tuple(
            Tensor(name, value.producer, tuple(consumers), value.elements)
            for name, (value, consumers) in self._reads.items()
        )
        return Network(tuple(self._layers.values()), tensors, tuple(self._joins), tuple(self._steps))

    def refuse_unsupported(self) -> None:
        if self._unsupported:
            (_, message), *more = self._unsupported.items()
            raise InputError(message + (f"; likewise {', '.join(name for name, _ in more)}" if more else ""))

    # Nodes

    def placeholder(self, position: int, node: Node, *, parameter: str | None, is_input: bool) -> None:
        value = node.meta.get("val")
        if is_input and isinstance(value, torch.Tensor):
            batched = value.dim() > 0 and value.shape[0] == self._batch
            elements, numeric = self._size(node, batched)
            storage = self._allocate(position, node, None, elements)
            self._values[node] = _Value(node.name, None, -1, elements, batched, numeric, storage)
        elif parameter is not None:
            self._parameters[node] = frozenset({parameter})
            self._verbatim[node] = parameter

    def operator(self, position: int, node: Node) -> None:
        if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(node.meta.get("val"))):
            return
        layer = self._called_layer(node)
        if layer is not None:
            self._call_layer(position, node, layer)
            return
        self._check_weights(node)
        if ops.is_mutation(node):
            self._mutate(position, node)
            return
        operands = self._operands(node)
        source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if ops.is_view(node) and source is not None:
            self._bases[node] = self._bases.get(source, source)
        if not operands:
            self._fold_constant(node, source)
        elif ops.is_identity(node) and source in self._values:
            self._values[node] = self._show(position, node, self._values[source])
        else:
            self._values[node] = self._compute(position, node, operands)

    def _operands(self, node: Node) -> list[_Value]:
        return [self._values[source] for source in node.all_input_nodes if source in self._values]

    def _fold_constant(self, node: Node, source: Node | None) -> None:
        found = [self._parameters[source] for source in node.all_input_nodes if source in self._parameters]
        if found:
            self._parameters[node] = frozenset().union(*found)
        if source in self._verbatim and ops.is_identity(node) and self._shape(node) == self._shape(source):
            self._verbatim[node] = self._verbatim[source]

    def _show(self, position: int, node: Node, source: _Value) -> _Value:
        """A view or copy of `source`."""
        elements, numeric = self._size(node, source.batched)
        if numeric and not source.numeric:
            return self._compute(position, node, [source])
        if source.storage is not None:
            source.storage.last_read = max(source.storage.last_read, self._last_read(node))
        name = source.name if elements == source.elements else node.name
        return replace(source, name=name, elements=elements, numeric=numeric)

    def _compute(self, position: int, node: Node, operands: Sequence[_Value]) -> _Value:
        owner = _owner(operands)
        elements, numeric, batched = self._batched_size(node, operands)
        self._join(node, ops.join_kind(node), operands, elements, numeric=numeric)
        storage = None
        if numeric:
            storage = self._overwritable(position, node, operands, elements)
            if storage is None:
                storage = self._allocate(position, node, owner.producer, elements)
                self._step(position, node.name)
            storage.last_read = max(storage.last_read, self._last_read(node))
        return _Value(node.name, owner.producer, owner.written, elements, batched, numeric, storage)

    def _mutate(self, position: int, node: Node) -> None:
        """Write into the first argument, which may be a view: whoever reads the viewed tensor later sees it."""
        target = node.args[0]
        if not isinstance(target, Node):
            return
        base = self._bases.get(target, target)
        before = [self._values[base]] if base in self._values else []
        operands = before + [self._values[n] for n in node.all_input_nodes if n is not target and n in self._values]
        if not operands:
            self._parameters[base] = frozenset().union(
                *(self._parameters.get(n, frozenset()) for n in (base, *node.all_input_nodes))
            )
            return
        owner = _owner(operands)
        elements, numeric, batched = self._batched_size(base, operands)
        kind = ops.join_kind(node) if base is target else "concat"
        self._join(node, kind, operands, elements, numeric=numeric)
        storage = before[0].storage if before else None
        if storage is None and numeric:
            storage = self._allocate(position, base, owner.producer, elements)
            self._step(position, node.name)
        if storage is not None:
            storage.producer = owner.producer
            storage.last_read = max(storage.last_read, self._last_read(node))
        value = _Value(node.name, owner.producer, owner.written, elements, batched, numeric, storage)
        self._values[base] = value
        for view in {target, node} - {base}:
            self._values[view] = self._show(position, view, value)

    # Layers

    def _called_layer(self, node: Node) -> str | None:
        if ops.op_name(node) not in ops.LAYER_OPS:
            return None
        _, weight, *_ = node.args
        scope = self._names.scope(node)
        layer = self._names.layer(scope, self._verbatim.get(weight) if isinstance(weight, Node) else None)
        return None if layer is None or self._names.is_float(scope, layer) else layer

    def _call_layer(self, position: int, node: Node, name: str) -> None:
        data = self._module_input(node)
        value = self._values.get(data)
        batched = value is not None and value.batched
        spec = self._layer_spec(name, node, data, batched=batched)
        self._layers[name] = _add_call(self._layers[name], spec) if name in self._layers else spec
        if value is not None:
            self._reads.setdefault(value.name, (value, {}))[1][name] = None
        storage = self._allocate(position, node, name, spec.output_elements)
        self._step(position, name)
        self._values[node] = _Value(node.name, name, position, spec.output_elements, batched, True, storage)

    def _module_input(self, node: Node) -> Node:
        """What the module itself reads: before any padding or cast that it does on its own (`padding_mode`)."""
        data, call = node.all_input_nodes[0], _call_key(node)
        while data.op == "call_function" and _call_key(data) == call:
            sources = [source for source in data.all_input_nodes if source in self._values]
            if len(sources) != 1:
                break
            data = sources[0]
        return data

    def _layer_spec(self, name: str, node: Node, data: Node, *, batched: bool) -> LayerSpec:
        module = self._names.model.get_submodule(name)
        kind = next(kind for cls, kind in LAYER_TYPES.items() if isinstance(module, cls))
        weight = tuple(module.get_parameter("weight").shape)
        spatial = len(weight) - 2
        least = spatial + 2 if spatial else 2
        if batched and len(self._shape(data)) < least:
            raise InputError(
                f"layer {name!r} reads a tensor of shape {self._shape(data)}, which has no batch dimension; "
                "give the example inputs a leading batch dimension"
            )
        read, written = self._size(data, batched)[0], self._size(node, batched)[0]
        bias = module._parameters.get("bias")
        return LayerSpec(
            name=name,
            kind=kind,
            weight_shape=weight,
            macs=(read if kind == "conv_transpose2d" else written) * math.prod(weight[1:]),
            params=math.prod(weight),
            bias_elements=0 if bias is None else bias.numel(),
            input_shape=self._sample_shape(data, batched, is_linear=not spatial),
            output_shape=self._sample_shape(node, batched, is_linear=not spatial),
            input_elements=read,
            output_elements=written,
            groups=int(getattr(module, "groups", 1)),
            stride=tuple(getattr(module, "stride", ())),
        )

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

    def _join(self, node: Node, kind: str, operands: Sequence[_Value], elements: int, *, numeric: bool) -> None:
        computed = [value for value in operands if value.numeric]
        if not numeric or len({value.producer for value in computed}) < 2:
            return
        owner = _owner(computed)
        others = tuple((value.producer, value.elements) for value in computed if value is not owner)
        self._joins.append(Join(node.name, kind, owner.producer, others, elements))

    def _overwritable(self, position: int, node: Node, operands: Sequence[_Value], elements: int) -> _Storage | None:
        """Memory of an operand that `node` may overwrite: of the owner's format and size, and read by nobody later."""
        if not ops.can_overwrite(node):
            return None
        owner = _owner(operands)
        for value in operands:
            storage = value.storage
            if (
                storage is not None
                and value.numeric
                and value.producer == owner.producer
                and elements == value.elements == storage.elements
                and storage.last_read <= position
            ):
                return storage
        return None

    def _allocate(self, position: int, node: Node, producer: str | None, elements: int) -> _Storage:
        storage = _Storage(producer, elements, max(position, self._last_read(node)))
        self._alive.append(storage)
        return storage

    def _step(self, position: int, name: str) -> None:
        self._alive = [storage for storage in self._alive if storage.last_read >= position]
        self._steps.append(Step(name, tuple((storage.producer, storage.elements) for storage in self._alive)))

    def _last_read(self, node: Node) -> int:
        return max((self._positions[user] for user in node.users), default=self._positions[node])

    # Sizes

    def _shape(self, node: Node) -> tuple[int, ...]:
        return tuple(node.meta["val"].shape)

    def _size(self, node: Node, batched: bool) -> tuple[int, bool]:
        """Elements per sample of what `node` holds, and whether they are numbers (not indices or masks)."""
        tensors = [leaf for leaf in tree_leaves(node.meta["val"]) if isinstance(leaf, torch.Tensor)]
        numbers = [tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
        total = sum(tensor.numel() for tensor in numbers or tensors)
        if not isinstance(total, int):
            raise InputError(
                f"{self._names.describe(self._names.scope(node))} makes a tensor whose size depends on the data "
                f"({ops.op_name(node)}); make its shape depend on the shapes of the inputs only"
            )
        return (total // self._batch if batched else total), bool(numbers)

    def _batched_size(self, node: Node, operands: Iterable[_Value]) -> tuple[int, bool, bool]:
        total, numeric = self._size(node, batched=False)
        batched = any(value.batched for value in operands) and total % self._batch == 0
        return (total // self._batch if batched else total), numeric, batched

    def _sample_shape(self, node: Node, batched: bool, *, is_linear: bool) -> tuple[int, ...]:
        shape = self._shape(node)
        if not batched:
            return shape
        if shape[0] == self._batch:
            return shape[1:]
        if is_linear:  # the batch may stand anywhere (sequence first, folded windows): count rows
            return (math.prod(shape[:-1]) // self._batch, shape[-1])
        return (shape[0] // self._batch, *shape[1:]) if shape[0] % self._batch == 0 else shape


def _owner(operands: Sequence[_Value]) -> _Value:
    """The operand computed last, numbers before indices and masks."""
    return max(operands, key=lambda value: (value.numeric, value.written))


def _call_key(node: Node) -> str | None:
    """Identifies the innermost module call that `node` is part of."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack)) if stack else None


def _add_call(spec: LayerSpec, call: LayerSpec) -> LayerSpec:
    return replace(
        spec,
        macs=spec.macs + call.macs,
        input_elements=spec.input_elements + call.input_elements,
        output_elements=spec.output_elements + call.output_elements,
        calls=spec.calls + 1,
    )
