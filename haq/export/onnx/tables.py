"""A weight that is looked up and multiplied with is in an ONNX file once."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from haq.export.onnx.graph import Graph, attribute


def share_tables(graph: Graph) -> None:
    """Let the table that a Gather reads be the transposed weight of a MatMul where both hold the same values."""
    dequantizers = [node for node in graph.nodes if node.op_type == "DequantizeLinear"]
    matrices = [node for node in dequantizers if _is_read_by(graph, node, "MatMul") and _steps(graph, node) is not None]
    for table in [node for node in dequantizers if _is_read_by(graph, node, "Gather")]:
        wanted = _steps(graph, table)
        for matrix in matrices:
            held = _steps(graph, matrix)
            if wanted is None or held is None or not _equal(wanted, held) or attribute(matrix, "axis", 1) != 1:
                continue
            turned = graph.fresh(f"{table.output[0]}.turned")
            again = helper.make_node("DequantizeLinear", list(matrix.input), [turned], name=table.name, axis=1)
            graph.replace(table, [again, helper.make_node("Transpose", [turned], [table.output[0]], perm=[1, 0])])
            break


def _is_read_by(graph: Graph, node: NodeProto, operator: str) -> bool:
    readers = graph.readers(node.output[0])
    return bool(readers) and all(reader.op_type == operator for reader in readers)


def _steps(graph: Graph, node: NodeProto) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes counted from zero `[rows, channels]`, and the scale of each row; `None` for other layouts."""
    codes, scale, zero = (graph.value(name) for name in node.input)
    axis = attribute(node, "axis", 1)
    if codes is None or scale is None or zero is None or codes.ndim != 2 or attribute(node, "block_size", 0):
        return None
    counted = codes.astype(np.int64)
    shift = zero.astype(np.int64).reshape((-1, 1) if axis == 0 else (1, -1))
    counted = counted - shift
    return (counted if axis == 0 else counted.T), scale.reshape(-1)


def _equal(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def share_initializers(graph: Graph) -> None:
    """Keep one of initializers that are equal, byte for byte."""
    kept: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    for name, tensor in list(graph.initializers.items()):
        if len(tensor.dims) < 2:
            continue
        content = tensor.raw_data or tensor.SerializeToString()
        first = kept.setdefault((tensor.data_type, tuple(tensor.dims), content), name)
        if first != name:
            graph.rename(name, first)
