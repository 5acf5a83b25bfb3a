"""ONNX Runtime's tensor overrides: a float ONNX model, and how its quantizer is to treat each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from haq.deployed.state import LayerState, ModelState, check_codes
from haq.edges.documents import read_json, write_bytes, write_json
from haq.export.onnx.graph import Graph, attribute
from haq.export.onnx.trace import OPSET, trace_marked
from haq.export.onnx.weights import MIDDLE, fold_batch_norms, may_saturate, name_float_layers
from haq.quant.formats.integer import PerTensorInteger
from haq.values.errors import InputError

_ACTIVATION_TYPES = {4: "QUInt4", 8: "QUInt8", 16: "QUInt16"}
_OPERATORS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]


def save_overrides(model: nn.Module, state: ModelState, inputs: Any, path: Path) -> None:
    """Write the overrides to `path` (JSON), and the float model that they are for beside it (`.onnx`).

    The float model holds the policy's weights as they are after quantization, batch norm folded, so that formats of
    any width come out right in ONNX Runtime's 4-, 8- and 16-bit types. Layers with float activations are excluded.

    Raises:
        InputError: a format that ONNX Runtime's quantizer does not have, a model that cannot be exported, or a path
            that ends in `.onnx`.
    """
    if path.suffix == ".onnx":
        raise InputError(f"--out {path}: is where the float model goes; end the name of the overrides in .json")
    check_codes("ort-overrides", state, most=16)
    for name, layer in state.layers.items():
        _check(name, layer)
    graph = Graph(trace_marked(model, state, inputs))
    name_float_layers(graph, state)
    gains = fold_batch_norms(graph, state)
    overrides = {**_weights(graph, state, gains), **_activations(graph, state)}
    beside = path.with_suffix(".onnx")
    document = {
        "model": beside.name,
        "tensor_quant_overrides": overrides,
        "nodes_to_exclude": [key for key, layer in state.layers.items() if not _is_quantized(layer)],
    }
    write_bytes(beside, graph.finish([("", OPSET)]).SerializeToString())
    write_json(path, document)


def load_overrides(path: str | Path) -> dict[str, Any]:
    """Keyword arguments of `onnxruntime.quantization.quantize_static` for a file of `save_overrides`.

    Args:
        path: the JSON file.

    Returns:
        `model_input`, `nodes_to_exclude`, `op_types_to_quantize`, `per_channel` and `extra_options`.
    """
    from onnxruntime.quantization import QuantType

    document = read_json(Path(path))
    overrides = {
        tensor: [_typed(entry, QuantType) for entry in entries]
        for tensor, entries in document["tensor_quant_overrides"].items()
    }
    return {
        "model_input": str(Path(path).parent / document["model"]),
        "nodes_to_exclude": document["nodes_to_exclude"],
        "op_types_to_quantize": list(_OPERATORS),
        "per_channel": True,
        "extra_options": {"TensorQuantOverrides": overrides, "OpTypesToExcludeOutputQuantization": list(_OPERATORS)},
    }


def _typed(entry: Mapping[str, Any], types: Any) -> dict[str, Any]:
    kind = types[entry["quant_type"]]
    zero = np.array(entry["zero_point"], np.uint8 if "UInt8" in entry["quant_type"] else np.int8)
    if "16" in entry["quant_type"]:
        zero = np.array(entry["zero_point"], np.uint16 if "UInt" in entry["quant_type"] else np.int16)
    return {**entry, "quant_type": kind, "scale": np.array(entry["scale"], np.float32), "zero_point": zero}


def _is_quantized(layer: LayerState) -> bool:
    return isinstance(layer.input, PerTensorInteger)


def _check(name: str, layer: LayerState) -> None:
    weight, activation = layer.precision.weight, layer.precision.activation
    if activation.is_float:
        return
    if activation.bits not in _ACTIVATION_TYPES or not activation.is_integer:
        raise InputError(
            f"--format ort-overrides: {name} reads {activation}; ONNX Runtime's quantizer has activations of 4, 8 and "
            "16 bits: choose one of these, or --format onnx"
        )
    if layer.weight is None:
        raise InputError(
            f"--format ort-overrides: {name} has {weight} weights and reads {activation}; ONNX Runtime's quantizer "
            "quantizes both or none: use --format onnx"
        )
    if len(layer.weight.blocks) > 1 or layer.weight.layout.granularity == "group":
        raise InputError(f"--format ort-overrides: {name} has a scale per group; use --format onnx")


def _weights(graph: Graph, state: ModelState, gains: Mapping[str, np.ndarray]) -> dict[str, list[dict[str, Any]]]:
    """Put dequantized weights in place of the markers; overrides of those that are to be quantized again."""
    overrides = {}
    for marker in [node for node in graph.nodes if node.op_type == "Weight"]:
        name, result = attribute(marker, "layer"), marker.output[0]
        layer, gain = state.layers[name], gains.get(marker.output[0])
        values = state.tensors[f"{name}.weight"] if layer.weight is None else layer.weight.dequantize()
        reader = graph.readers(result)[0]
        axis = 1 if reader.op_type == "ConvTranspose" else 0
        weight = values.numpy().astype(np.float64)
        if gain is not None:
            weight = weight * gain.reshape([-1 if dim == axis else 1 for dim in range(weight.ndim)])
        weight = weight.astype(np.float32)
        turned = reader.op_type == "Transpose"
        if turned:
            graph.replace(reader, [])
            weight, axis, result = weight.T, 1, reader.output[0]
        for computes in graph.readers(result):
            computes.name = name
        tensor = graph.constant(f"{name}.weight", np.ascontiguousarray(weight))
        graph.rename(result, tensor)
        graph.replace(marker, [])
        if _is_quantized(layer):
            overrides[tensor] = _weight_entries(layer, gain, axis)
    return overrides


def _weight_entries(layer: LayerState, gain: np.ndarray | None, axis: int) -> list[dict[str, Any]]:
    assert layer.weight is not None
    codes, scale, zero = (part.numpy() for part in layer.weight.blocks[0])
    scales, zeros = scale.flatten().astype(np.float64), zero.flatten()
    if gain is not None:
        scales, zeros = scales * gain, np.broadcast_to(zeros, gain.shape)
    bits = max(int(codes.max()).bit_length() + 1, int(-codes.min() - 1).bit_length() + 1)
    kind = next(f"QInt{width}" for width in (4, 8, 16) if bits <= width)
    if int(codes.min()) >= 0 and bits > layer.precision.weight.bits:  # affine codes
        kind = next(f"QUInt{width}" for width in (4, 8, 16) if bits - 1 <= width)
    if kind == "QInt8" and may_saturate(layer):
        kind, zeros = "QUInt8", zeros + MIDDLE
    axes = {} if len(scales) == 1 else {"axis": axis}
    return [
        {"quant_type": kind, "scale": float(s), "zero_point": int(z), **axes}
        for s, z in zip(scales, zeros, strict=True)
    ]


def _activations(graph: Graph, state: ModelState) -> dict[str, list[dict[str, Any]]]:
    """Take the markers of inputs off; overrides of what quantized layers read.

    Raises:
        InputError: two layers read one tensor in different formats.
    """
    overrides: dict[str, list[dict[str, Any]]] = {}
    for marker in [node for node in graph.nodes if node.op_type == "Input"]:
        name, tensor = attribute(marker, "layer"), marker.input[0]
        quantizer = state.layers[name].input
        graph.rename(marker.output[0], tensor)
        graph.replace(marker, [])
        if not isinstance(quantizer, PerTensorInteger):
            continue
        kind = _ACTIVATION_TYPES[state.layers[name].precision.activation.bits]
        entry = {
            "quant_type": kind,
            "scale": quantizer.scale,
            "zero_point": quantizer.zero_point - quantizer.quant_min,
        }
        if overrides.setdefault(tensor, [entry]) != [entry]:
            raise InputError(
                f"--format ort-overrides: {name} and another layer read one tensor in two formats; tie them "
                "(space.ties), or use --format onnx"
            )
    return overrides
