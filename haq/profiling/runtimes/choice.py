"""The runtimes that can be measured, by name."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import nn

from haq.hardware.sections import Measured, ProfileQuantization
from haq.profiling.runtimes.base import Runtime
from haq.quant import QuantizedModel
from haq.values.errors import InputError

RUNTIMES = ("onnxruntime", "torch", "command")
QUANTIZATION = ProfileQuantization(weight_granularity="channel", weight_scheme="symmetric", activation_scheme="affine")
"""What integer kernels on CPUs expect."""


@dataclass(frozen=True)
class RuntimeChoice:
    """What executes the policies.

    Attributes:
        name: in `RUNTIMES`.
        threads: of one operator.
        device: `cpu` or `cuda`; of `torch`.
        command: of `command`: reads a policy as JSON on standard input, writes milliseconds as its last line.
        low: the low precision compared with float, of `command`; of the others it is what they execute.
        timeout: seconds for one call of `command`.
    """

    name: str = "onnxruntime"
    threads: int = 1
    device: str = "cpu"
    command: str = ""
    low: str = "w8a8"
    timeout: float = 60.0

    @classmethod
    def of(cls, measured: Measured, *, command: str = "") -> RuntimeChoice:
        """What a profile was measured with.

        Args:
            measured: of the profile.
            command: that the user allows to be run. A profile may come from anybody: the one that it names is shown to
                the user, and never run for its sake.

        Raises:
            InputError: the profile was measured with a command and the user names none, or the reverse.
        """
        if measured.command and not command:
            raise InputError(
                f"the profile was measured with the command {measured.command!r}, which is run only if you name it: "
                "--command (haq validate), or device.command in the experiment file"
            )
        if command and not measured.command:
            raise InputError(
                f"--command {command!r}: the profile was measured with {measured.package}, not with a command; leave "
                "it out (in the experiment file: device.command)"
            )
        name = "command" if measured.command else measured.package
        device = "cuda" if measured.accelerator else "cpu"
        low = measured.low if measured.command else cls.low
        return cls(name, measured.threads, device, command, low)

    @staticmethod
    def known(measured: Measured) -> bool:
        """Whether what a profile was measured with can be had again."""
        return bool(measured.command) or measured.package in RUNTIMES

    def check(self) -> None:
        """Raise unless it is known, installed and complete.

        Raises:
            InputError: names the known ones, what to install, or the option.
        """
        if self.name not in RUNTIMES:
            raise InputError(f"--runtime {self.name!r}: unknown; known: {', '.join(RUNTIMES)}")
        if self.name == "onnxruntime":
            for package in ("onnx", "onnxruntime"):
                if find_spec(package) is None:
                    raise InputError(
                        f"--runtime {self.name} needs the package {package}; install it: pip install 'haq[onnx]'"
                    )
        if self.name != "torch" and self.device != "cpu":
            raise InputError(f"--device {self.device}: is for --runtime torch; {self.name} takes none")
        if (self.name == "command") != bool(self.command):
            raise InputError("--command: is the script of --runtime command; give both or none")
        if self.name != "command" and self.low != "w8a8":
            raise InputError(f"--low {self.low}: is for --runtime command; {self.name} executes what it can")
        try:
            shlex.split(self.command)
        except ValueError as error:
            raise InputError(f"--command {self.command!r}: {error}") from error


def build_runtime(choice: RuntimeChoice, model: nn.Module, quantized: QuantizedModel | None, inputs: Any) -> Runtime:
    """The chosen runtime for one model; `quantized` is read by onnxruntime only.

    Raises:
        InputError: unknown, not installed, or it cannot run the model.
    """
    choice.check()
    if choice.name == "torch":
        from haq.profiling.runtimes.torch_runtime import TorchRuntime

        return TorchRuntime(model, inputs, device=choice.device, threads=choice.threads)
    if choice.name == "command":
        from haq.profiling.runtimes.script import ScriptRuntime

        return ScriptRuntime(choice.command, low=choice.low, timeout=choice.timeout)
    from haq.profiling.runtimes.onnx_runtime import OnnxRuntime

    assert quantized is not None  # see `open_runtime`
    return OnnxRuntime(model, quantized, inputs, threads=choice.threads)
