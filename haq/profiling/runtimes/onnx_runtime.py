"""ONNX Runtime on the CPU: float32 and int8 layers, timed by itself and by its own profile."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from torch import nn

from haq.export import capture
from haq.export.onnx.model import onnx_model
from haq.export.onnx.run import DISABLED_OPTIMIZERS, INTEGER_KERNELS, feeds_of, layer_of, operators, session
from haq.profiling.runtimes.base import Prepared
from haq.quant import QuantizedModel
from haq.quant.nested import map_tensors
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy

_WARM_UP = 5


class OnnxRuntime:
    """Runs the ONNX export of each policy, 8-bit layers writing 8-bit tensors.

    Args:
        model: the float model.
        quantized: what wraps it; policies are applied to it.
        inputs: samples from which ranges are taken; the first one is timed.
        threads: of one operator.

    Raises:
        InputError: weights are quantized in a way that has no integer kernels.
    """

    name = "onnxruntime"
    low = Precision.parse("w8a8")

    def __init__(self, model: nn.Module, quantized: QuantizedModel, inputs: Any, *, threads: int) -> None:
        if quantized.quantization.weight_scheme != "symmetric":
            raise InputError(
                "quantization.weight_scheme = 'affine': ONNX Runtime has no fast kernels for it; set "
                "quantization.weight_scheme = 'symmetric'"
            )
        self._model, self._quantized, self._threads = model, quantized, threads
        self._inputs = inputs
        self._one = map_tensors(lambda tensor: tensor[:1], inputs)

    @property
    def title(self) -> str:
        return (
            f"onnxruntime {ort.__version__} CPU, ORT_ENABLE_ALL, without {', '.join(DISABLED_OPTIMIZERS)}, "
            "8-bit layers write 8-bit tensors"
        )

    @property
    def package(self) -> tuple[str, str]:
        return "onnxruntime", str(ort.__version__)

    def prepare(self, policy: Policy) -> Prepared:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            running = session(self._export(policy), threads=self._threads, save=path)
            executed = operators(onnx.load(path).graph.node, policy)
        unmet = tuple(
            name
            for name, precision in policy.items()
            if (precision == self.low) != (executed.get(name) in INTEGER_KERNELS)
        )
        return Prepared(partial(_run, running, feeds_of(running, self._one)), executed, unmet)

    def layer_times(self, policy: Policy, *, runs: int) -> Mapping[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            profile = Path(folder) / "profile"
            running = session(self._export(policy), threads=self._threads, save=path, profile=profile)
            feeds = feeds_of(running, self._one)
            for _ in range(_WARM_UP + runs):
                running.run(None, feeds)
            events = json.loads(Path(running.end_profiling()).read_text(encoding="utf-8"))
            owners = {node.name: layer_of(node, policy) for node in onnx.load(path).graph.node}
        return _layer_times(events, list(policy), owners, skip=_WARM_UP)

    def _export(self, policy: Policy) -> bytes:
        self._quantized.apply(policy)
        model = onnx_model(self._model, capture(self._quantized), self._inputs, integer_outputs=True)
        return bytes(model.SerializeToString())


def _run(running: ort.InferenceSession, feeds: Mapping[str, Any]) -> None:
    running.run(None, feeds)


def _layer_times(
    events: Iterable[Mapping[str, Any]], layers: list[str], owners: Mapping[str, str | None], *, skip: int
) -> dict[str, float]:
    """Sums per layer of each node's mean over the faster half of its runs, in microseconds.

    The profiler spends microseconds on each node itself, and times are whole microseconds: hence the mean.
    """
    runs: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs[event["name"].removesuffix("_kernel_time")].append(float(event["dur"]))
    times = dict.fromkeys(layers, 0.0)
    current = layers[0]
    for node, durations in runs.items():
        current = owners.get(node) or current
        fast = sorted(durations[skip:])[: max(1, (len(durations) - skip) // 2)]
        times[current] += sum(fast) / len(fast)
    return times
