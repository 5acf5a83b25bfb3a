"""Running an exported ONNX model, and telling which of its layers run in integers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from haq.quant.nested import tensors_in

DISABLED_OPTIMIZERS = ("WeightBiasQuantization",)
"""It quantizes, unasked, float layers that stand between quantized tensors."""
INTEGER_KERNELS = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger")
RUNS_AS = {True: "integers", False: "float32"}
"""Whether a layer's operator is in `INTEGER_KERNELS` -> what to call it."""
_SUFFIX = re.compile(r"(\.output\.\d+)?(#\d+)?(_token_\d+|_nchwc|_nhwc)?$")


def session(
    model: bytes | str,
    *,
    optimize: bool = True,
    threads: int = 1,
    save: Path | None = None,
    profile: Path | None = None,
) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU that computes what the model says.

    Args:
        model: serialized, or the path of a file, beside which its external data lie.
        optimize: all graph optimizations, or none.
        threads: for one operator.
        save: write the optimized graph there.
        profile: let the runtime time its nodes, into a file whose name begins so.
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
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return ort.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(DISABLED_OPTIMIZERS)
    )


class OnnxRunner:
    """Computes outputs with ONNX Runtime: one tensor, or a tuple of them."""

    def __init__(self, model: bytes, *, optimize: bool = True, threads: int = 1) -> None:
        self._session = session(model, optimize=optimize, threads=threads)

    def __call__(self, inputs: Any) -> Any:
        feeds = feeds_of(self._session, inputs)
        outputs = tuple(torch.from_numpy(np.asarray(output)) for output in self._session.run(None, feeds))
        return outputs[0] if len(outputs) == 1 else outputs


def feeds_of(running: ort.InferenceSession, inputs: Any) -> dict[str, np.ndarray]:
    """A model's inputs as ONNX Runtime wants them."""
    names = [value.name for value in running.get_inputs()]
    if isinstance(inputs, Mapping):
        return {name: inputs[name].cpu().numpy() for name in names}
    values = [tensor.cpu().numpy() for tensor in tensors_in(inputs)]
    return dict(zip(names, values, strict=True))


def kernels(model: bytes, layers: Iterable[str]) -> dict[str, str]:
    """Layer -> the operator that ONNX Runtime runs for it, read from the optimized graph."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session(model, save=path)
        return operators(onnx.load(path).graph.node, layers)


def operators(nodes: Iterable[onnx.NodeProto], layers: Iterable[str]) -> dict[str, str]:
    """Layer -> its operator in an optimized graph.

    A layer that is called several times counts as integer only if every call is.
    """
    wanted = set(layers)
    found: dict[str, str] = {}
    for node in nodes:
        name = layer_of(node, wanted)
        if name is not None and found.get(name, INTEGER_KERNELS[0]) in INTEGER_KERNELS:
            found[name] = node.op_type
    return found


def layer_of(node: onnx.NodeProto, layers: Container[str]) -> str | None:
    """The layer that a node of the optimized graph computes, by its name or that of what it writes."""
    names = (_SUFFIX.sub("", text) for text in (node.name, *node.output))
    return next((name for name in names if name in layers), None)
