"""Running an exported ONNX model, and telling which of its layers run in integers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from haq.quant.tree import tensors_in

DISABLED_OPTIMIZERS = ("WeightBiasQuantization",)
"""It quantizes, unasked, float layers that stand between quantized tensors."""
INTEGER_KERNELS = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger")
_SUFFIX = re.compile(r"(#\d+)?(_token_\d+|_nchwc|_nhwc)?$")


def session(model: bytes, *, optimize: bool = True, threads: int = 1, save: Path | None = None) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU that computes what the model says.

    Args:
        model: serialized.
        optimize: all graph optimizations, or none.
        threads: for one operator.
        save: write the optimized graph there.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    # Products with packed 4-bit weights in float32: the default quantizes their inputs once more, to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if save is not None:
        options.optimized_model_filepath = str(save)
    return ort.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(DISABLED_OPTIMIZERS)
    )


class OnnxRunner:
    """Computes outputs with ONNX Runtime: one tensor, or a tuple of them."""

    def __init__(self, model: bytes, *, optimize: bool = True, threads: int = 1) -> None:
        self._session = session(model, optimize=optimize, threads=threads)
        self._names = [value.name for value in self._session.get_inputs()]

    def __call__(self, inputs: Any) -> Any:
        feeds = self._feeds(inputs)
        outputs = tuple(torch.from_numpy(np.asarray(output)) for output in self._session.run(None, feeds))
        return outputs[0] if len(outputs) == 1 else outputs

    def _feeds(self, inputs: Any) -> dict[str, np.ndarray]:
        if isinstance(inputs, Mapping):
            return {name: inputs[name].cpu().numpy() for name in self._names}
        values = [tensor.cpu().numpy() for tensor in tensors_in(inputs)]
        return dict(zip(self._names, values, strict=True))


def kernels(model: bytes, layers: Iterable[str]) -> dict[str, str]:
    """Layer -> the operator that ONNX Runtime runs for it, read from the optimized graph.

    A layer that is called several times counts as integer only if every call is.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session(model, save=path)
        nodes = onnx.load(path).graph.node
    wanted = set(layers)
    found: dict[str, str] = {}
    for node in nodes:
        name = _SUFFIX.sub("", node.name)
        if name in wanted and found.get(name, INTEGER_KERNELS[0]) in INTEGER_KERNELS:
            found[name] = node.op_type
    return found
