"""Why ONNX Runtime computes something else than a file says: probes of the runtime on this machine."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

_EXACT = 255 * 127 * 72
"""Of a 3 x 3 convolution over 8 channels, all inputs 255 and all weights 127."""


@cache
def saturates() -> bool:
    """Whether this machine's kernels for unsigned inputs and signed weights add products in 16 bits, saturating.

    One convolution is run whose every sum of two products leaves 16 bits. So it is on x86 processors without VNNI.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(_convolution(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((1, 8, 8, 8), 255, np.float32)})
    return bool(abs(float(found.max()) - _EXACT) > 0.01 * _EXACT)


def _convolution() -> bytes:
    constants = {
        "w": np.full((1, 8, 3, 3), 127, np.int8),
        "one": np.float32(1),
        "zero": np.uint8(0),
        "signed_zero": np.int8(0),
        "step": np.float32(2**14),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "one", "zero"], ["codes"]),
        node("DequantizeLinear", ["codes", "one", "zero"], ["inputs"]),
        node("DequantizeLinear", ["w", "one", "signed_zero"], ["weights"]),
        node("Conv", ["inputs", "weights"], ["sums"]),
        node("QuantizeLinear", ["sums", "step", "zero"], ["written"]),
        node("DequantizeLinear", ["written", "step", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def has_signed_weights(model: bytes) -> bool:
    """Whether a file holds int8 weights, beside which unsigned inputs may saturate."""
    graph = onnx.load_from_string(model).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    weights = (stored.get(node.input[0]) for node in graph.node if node.op_type == "DequantizeLinear")
    return any(tensor is not None and tensor.data_type == TensorProto.INT8 and tensor.dims for tensor in weights)
