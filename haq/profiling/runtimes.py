"""The runtimes that can be measured, by name."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import nn

from haq.errors import InputError
from haq.hardware.sections import ProfileQuantization
from haq.profiling.base import Runtime
from haq.quant import QuantizedModel

RUNTIMES = ("onnxruntime",)
QUANTIZATION = ProfileQuantization(weight_granularity="channel", weight_scheme="symmetric", activation_scheme="affine")
"""What integer kernels on CPUs expect."""


def check_runtime(name: str) -> None:
    """Raise unless the runtime is known and installed.

    Raises:
        InputError: names the known ones, or what to install.
    """
    if name not in RUNTIMES:
        raise InputError(f"--runtime {name!r}: unknown; known: {', '.join(RUNTIMES)}")
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise InputError(f"--runtime {name} needs the package {package}; install it: pip install 'haq[onnx]'")


def build_runtime(name: str, model: nn.Module, quantized: QuantizedModel, inputs: Any, *, threads: int) -> Runtime:
    """The runtime called `name` for one model.

    Raises:
        InputError: unknown, not installed, or it cannot run the model.
    """
    check_runtime(name)
    from haq.profiling.ort import OnnxRuntime

    return OnnxRuntime(model, quantized, inputs, threads=threads)
