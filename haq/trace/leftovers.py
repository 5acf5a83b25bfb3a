"""What of a traced model is in no quantized layer: the parameters that it holds and the operators that it runs.

Nothing here knows kinds of layers: whatever the walk over the graph called a layer is quantized, all else is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.utils._pytree import tree_map

from haq.trace import ops
from haq.trace.memory import Value
from haq.trace.names import ModelNames
from haq.values.network import FloatPart

_BIAS_BYTES = 4


class Leftovers:
    """Collects the parts of a graph that stay in float.

    Args:
        graph: with example values in `meta["val"]`.
        names: of the model's modules.
        calls: node -> the layer that it is a call of.
        tensors: placeholder -> qualified name and value of the parameter or buffer that it stands for.
        values: node -> what it holds, if that depends on the network's inputs.
        batch: samples in the example; divided out.
    """

    def __init__(
        self,
        graph: Graph,
        names: ModelNames,
        calls: Mapping[Node, str],
        tensors: Mapping[str, tuple[str, Tensor]],
        values: Mapping[Node, Value],
        *,
        batch: int,
    ) -> None:
        self._graph, self._names, self._calls, self._tensors = graph, names, calls, tensors
        self._values, self._batch = values, batch
        self._layers = frozenset(calls.values())
        self._merged = {node: layer for node in graph.nodes if (layer := self._merged_into(node)) is not None}
        self._parts: dict[str, FloatPart] = {}

    def parts(self) -> tuple[FloatPart, ...]:
        """One for each module that holds or computes something, in the order of the graph."""
        self._hold()
        for node in self._graph.nodes:
            if node.op == "call_function" and node not in self._calls and node not in self._merged:
                self._work(node)
        return tuple(part for part in self._parts.values() if part.params or part.works)

    def _add(self, name: str, **counts: Any) -> None:
        kind = "bias" if name in self._layers else type(self._names.module(name)).__name__
        part = FloatPart(name, kind, **counts)
        self._parts[name] = self._parts[name] + part if name in self._parts else part

    # What is held

    def _hold(self) -> None:
        seen: set[int] = set()
        for node in self._graph.nodes:
            if node.op != "placeholder" or node.name not in self._tensors:
                continue
            name, tensor = self._tensors[node.name]
            readers = list(_readers(node))
            if not readers or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            others = [reader for reader in readers if reader not in self._calls and reader not in self._merged]
            if self._is_quantized(name, tensor, readers):
                if others:  # a tied weight that is read in float as well is there twice
                    self._keep(self._names.scope(others[0]), tensor)
            elif others or not all(reader in self._merged for reader in readers):
                self._keep(self._names.owner(name), tensor)
        for layer in dict.fromkeys(self._merged.values()):
            self._merge(layer)

    def _keep(self, module: str, tensor: Tensor) -> None:
        # Whatever the model's own type, biases of layers are added in 32 bits.
        is_bias = module in self._layers and tensor.dim() == 1
        size = _BIAS_BYTES if is_bias else tensor.element_size()
        self._add(module, params=tensor.numel(), bytes=tensor.numel() * size)

    def _merge(self, layer: str) -> None:
        """A merged batch norm is one number per channel: the bias of its layer, which that may have anyway."""
        module = self._names.module(layer)
        if module._parameters.get("bias") is None:
            node = next(node for node, name in self._merged.items() if name == layer)
            channels = node.meta["val"].shape[1]
            self._add(layer, params=channels, bytes=channels * _BIAS_BYTES)

    def _is_quantized(self, name: str, tensor: Tensor, readers: Iterable[Node]) -> bool:
        """Whether a layer quantizes it: a weight of two dimensions or more of a module that is a layer or holds one."""
        if tensor.dim() < 2 or not tensor.is_floating_point():
            return False
        owner = self._names.owner(name)
        holds = any(layer == owner or layer.startswith(f"{owner}.") for layer in self._layers) if owner else False
        return any(reader in self._calls for reader in readers) or (holds and not self._is_container(owner))

    def _is_container(self, name: str) -> bool:
        """Whether the layers below it are modules of their own, which hold their weights themselves."""
        return name not in self._layers and all(
            isinstance(_module(self._names, layer), nn.Module) for layer in self._layers if layer.startswith(f"{name}.")
        )

    def _merged_into(self, node: Node) -> str | None:
        """The layer that alone feeds a batch norm, and nothing else."""
        if node.op != "call_function" or not ops.normalises_batches(node):
            return None
        source = node.args[0]
        if not isinstance(source, Node) or len(source.users) > 1:
            return None
        return self._calls.get(source)

    # What is computed

    def _work(self, node: Node) -> None:
        scope = self._names.scope(node)
        if scope in self._layers:
            return
        multiplies = next(ops.multiplied_operands(node), None) is not None
        in_float = ops.stays_float(node) or ops.normalises_batches(node) or (multiplies and self._names.is_float(scope))
        if not in_float or node not in self._values:
            return
        macs = self._macs(node) if multiplies else 0
        written = self._values[node]
        read = [self._values[source].elements for source in node.all_input_nodes if source in self._values]
        self._add(
            scope,
            macs=(macs or 0) // (self._batch if written.batched else 1),
            input_elements=sum(read),
            output_elements=written.elements,
            counted=macs is not None,
        )

    def _macs(self, node: Node) -> int | None:
        """Multiply-accumulates of the whole batch, half of what torch counts as operations; `None` where it cannot."""
        if ops.op_name(node) == "scaled_dot_product_attention":
            query, key, value = (argument.meta["val"].shape for argument in node.args[:3] if isinstance(argument, Node))
            return int(math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))
        if weights := ops.recurrent_weights(node):
            data = node.all_input_nodes[0].meta["val"]
            return int(sum(weight.meta["val"].numel() for weight in weights) * (data.numel() // data.shape[-1]))
        from torch.utils.flop_counter import FlopCounterMode

        arguments = tree_map(lambda a: a.meta["val"] if isinstance(a, Node) else a, (node.args, dict(node.kwargs)))
        try:
            with FlopCounterMode(display=False) as counter:
                node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
        except Exception:
            return None
        return int(counter.get_total_flops()) // 2 or None


def _readers(node: Node) -> Iterator[Node]:
    """The operators that read a value, as it is or as a view or copy of it."""
    for user in node.users:
        if user.op != "call_function":
            continue
        if ops.is_identity(user) and user.all_input_nodes[0] is node:
            yield from _readers(user)
        else:
            yield user


def _module(names: ModelNames, name: str) -> nn.Module | None:
    try:
        return names.module(name)
    except AttributeError:
        return None


def held_tensors(model: nn.Module, signature: Any) -> dict[str, tuple[str, Tensor]]:
    """Placeholder -> qualified name and value of each parameter and buffer of an exported program's `signature`."""
    found: dict[str, tuple[str, Tensor]] = {}
    for placeholder, name in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items():
        owner, _, attribute = name.rpartition(".")
        value = getattr(model.get_submodule(owner), attribute, None)
        if isinstance(value, torch.Tensor):
            found[placeholder] = (name, value)
    return found
