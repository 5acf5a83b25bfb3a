"""An ONNX graph that can be rewritten: who reads what, new initializers, nodes in place of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

_FOUR_BITS = (TensorProto.INT4, TensorProto.UINT4)
_NUMPY: dict[int, Any] = {
    TensorProto.INT8: np.int8,
    TensorProto.UINT8: np.uint8,
    TensorProto.INT16: np.int16,
    TensorProto.UINT16: np.uint16,
    TensorProto.INT32: np.int32,
}


def integer_tensor(name: str, values: np.ndarray, data_type: int) -> TensorProto:
    """A tensor of an ONNX integer type, 4-bit ones packed two to a byte, the first in the low half."""
    if data_type in _FOUR_BITS:
        nibbles = values.reshape(-1).astype(np.int64) & 0xF
        nibbles = np.append(nibbles, np.zeros(nibbles.size % 2, np.int64))
        raw = (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()
    else:
        raw = np.ascontiguousarray(values.astype(_NUMPY[data_type])).tobytes()
    return helper.make_tensor(name, data_type, values.shape, raw, raw=True)


class Graph:
    """The nodes of a model in order, and its initializers by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.inputs = {value.name for value in model.graph.input}
        self._model = model
        self._count = 0

    def readers(self, value: str) -> list[NodeProto]:
        """The nodes that read `value`."""
        return [node for node in self.nodes if value in node.input]

    def producer(self, value: str) -> NodeProto | None:
        """The node that writes `value`; `None` for inputs and initializers."""
        return next((node for node in self.nodes if value in node.output), None)

    def only_reader(self, value: str) -> NodeProto | None:
        """The single node that reads `value`, which is no output of the graph; `None` if it is not so."""
        readers = self.readers(value)
        return readers[0] if len(readers) == 1 and value not in self.outputs else None

    def fresh(self, stem: str) -> str:
        """A name that nothing has."""
        self._count += 1
        return f"{stem}.{self._count}"

    def constant(self, stem: str, values: Any) -> str:
        """A new initializer with the type of the numpy array `values`; its name."""
        name = self.fresh(stem)
        self.initializers[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def integers(self, stem: str, values: np.ndarray, data_type: int) -> str:
        """A new initializer of an ONNX integer type; its name."""
        name = self.fresh(stem)
        self.initializers[name] = integer_tensor(name, values, data_type)
        return name

    def value(self, name: str) -> np.ndarray | None:
        """The content of an initializer or constant node, else `None`."""
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        node = self.producer(name)
        if node is None or node.op_type != "Constant":
            return None
        return numpy_helper.to_array(node.attribute[0].t)

    def computed(self, name: str) -> np.ndarray | None:
        """The content of a value that depends on no input of the graph, else `None`."""
        needed, nodes = {name}, list[NodeProto]()
        for node in reversed(self.nodes):
            if needed & set(node.output):
                nodes.insert(0, node)
                needed |= set(node.input)
        if needed & self.inputs:
            return None
        tensors = [self.initializers[key] for key in needed & set(self.initializers)]
        output = helper.make_empty_tensor_value_info(name)
        model = helper.make_model(
            helper.make_graph(nodes, "constants", [], [output], tensors), opset_imports=self._model.opset_import
        )
        (found,) = ReferenceEvaluator(model).run(None, {})
        return np.asarray(found)

    def replace(self, old: NodeProto, new: Sequence[NodeProto]) -> None:
        """Put nodes in the place of one."""
        index = next(i for i, node in enumerate(self.nodes) if node is old)
        self.nodes[index : index + 1] = new

    def rename(self, old: str, new: str) -> None:
        """Let all that read `old` read `new`."""
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new

    def finish(self, opsets: Iterable[tuple[str, int]]) -> onnx.ModelProto:
        """The model, without what nothing reads."""
        read = self.outputs | {name for node in self.nodes for name in node.input}
        nodes = [node for node in self.nodes if any(name in read for name in node.output)]
        read = self.outputs | {name for node in nodes for name in node.input}
        # Layers that are called several times: names of nodes must differ.
        seen: Counter[str] = Counter()
        for node in nodes:
            seen[node.name] += 1
            if node.name and seen[node.name] > 1:
                node.name = f"{node.name}#{seen[node.name]}"
        graph = self._model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:], self._model.opset_import[:]
        graph.node.extend(nodes)
        graph.initializer.extend(tensor for name, tensor in self.initializers.items() if name in read)
        self._model.opset_import.extend(helper.make_opsetid(*opset) for opset in opsets)
        return self._model


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            return value.decode() if isinstance(value, bytes) else value
    return default
