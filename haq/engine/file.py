"""The integer model as a file: one safetensors file, integer arrays and a JSON document in its metadata."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from haq.edges.documents import check_file, parse_json, to_json, write_bytes
from haq.edges.user_code import describe
from haq.engine.dyadic import ROUNDINGS
from haq.engine.graph import IntegerModel, Node, TensorFormat
from haq.values.errors import InputError

KEY = "haq.integer"
_SCHEMA = 1
_MOST_FRACTION_BITS = 53


def save_integer(model: IntegerModel, path: Path) -> None:
    """Write `model`: integers only. A scale is an odd or zero mantissa and a power of two.

    Raises:
        InputError: the file cannot be written.
    """
    write_bytes(path, integer_bytes(model))


def integer_bytes(model: IntegerModel) -> bytes:
    """What `save_integer` writes."""
    arrays = {
        f"{index}.{key}": np.ascontiguousarray(array)
        for index, node in enumerate(model.nodes)
        for key, array in node.arrays.items()
    }
    document = {
        "schema_version": _SCHEMA,
        "rounding": model.rounding,
        "policy": dict(model.policy),
        "outputs": list(model.outputs),
        "nodes": [_node_doc(node) for node in model.nodes],
    }
    content: bytes = save(arrays, metadata={KEY: to_json(document)})
    return content


def load_integer(path: str | Path) -> IntegerModel:
    """Read what `save_integer` wrote.

    Raises:
        InputError: no such file, or not one of this format.
    """
    check_file(Path(path), limit=None)
    try:
        with safe_open(str(path), framework="numpy") as file:
            text = (file.metadata() or {}).get(KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a safetensors file: {error}") from error
    if text is None:
        raise InputError(f"{path}: holds no integer model; write it with haq export --format integer")
    try:
        return _model(parse_json(text), arrays)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(f"{path}: damaged: {describe(error)}; export it anew") from error


def _model(document: dict[str, Any], arrays: dict[str, np.ndarray]) -> IntegerModel:
    if document.get("schema_version") != _SCHEMA:
        raise InputError(f"schema_version {document.get('schema_version')!r} is unknown; this haq reads {_SCHEMA}")
    if document["rounding"] not in ROUNDINGS:
        raise InputError(f"rounding {document['rounding']!r} is unknown; known: {', '.join(ROUNDINGS)}")
    if floats := [name for name, array in arrays.items() if array.dtype.kind not in "iu"]:
        raise InputError(f"the array {floats[0]!r} holds no integers; export it anew")
    nodes = tuple(_node(row, index, arrays) for index, row in enumerate(document["nodes"]))
    model = IntegerModel(nodes, tuple(document["outputs"]), document["rounding"], dict(document["policy"]))
    model.check()
    return model


def _node_doc(node: Node) -> dict[str, Any]:
    mantissa, exponent = math.frexp(node.format.scale)
    return {
        "name": node.name,
        "op": node.op,
        "inputs": list(node.inputs),
        "shape": list(node.shape),
        "low": node.format.low,
        "high": node.format.high,
        "zero_point": node.format.zero_point,
        "scale": [int(math.ldexp(mantissa, _MOST_FRACTION_BITS)), exponent - _MOST_FRACTION_BITS],
        "attributes": dict(node.attributes),
        "layer": node.layer,
    }


def _node(row: dict[str, Any], index: int, arrays: dict[str, np.ndarray]) -> Node:
    fmt = TensorFormat(row["low"], row["high"], row["zero_point"], math.ldexp(*row["scale"]))
    prefix = f"{index}."
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    inputs, shape = tuple(row["inputs"]), tuple(row["shape"])
    return Node(row["name"], row["op"], inputs, shape, fmt, row["attributes"], own, row["layer"])
