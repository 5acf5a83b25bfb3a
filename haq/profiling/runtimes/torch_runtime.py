"""Torch itself, on the CPU or on CUDA: float32 against bfloat16 (CPU) or float16 (CUDA), layer by layer."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from haq.profiling.runtimes.base import Prepared
from haq.quant.nested import call_model, map_tensors
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy

_WARM_UP = 5
_LOW = {"cpu": ("wbf16abf16", torch.bfloat16), "cuda": ("wfp16afp16", torch.float16)}


class TorchRuntime:
    """Runs the model eagerly, each layer in its own type; a tensor is cast where a layer reads another one.

    What stands between layers (norms, activations, sums) computes in the type that it is given.

    Args:
        model: the float model.
        inputs: the first sample is timed.
        device: `cpu` or `cuda`.
        threads: of one operator, on the CPU.

    Raises:
        InputError: no such device.
    """

    name = "torch"
    package = ("torch", str(torch.__version__))

    def __init__(self, model: nn.Module, inputs: Any, *, device: str, threads: int) -> None:
        if device not in _LOW:
            raise InputError(f"--device {device!r}: unknown; known: {', '.join(_LOW)}")
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: torch sees no CUDA device here; take --device cpu")
        name, self._dtype = _LOW[device]
        self.low = Precision.parse(name)
        self._model, self._device, self._threads = model, device, threads
        self._one = map_tensors(lambda tensor: tensor[:1].to(device), inputs)

    @property
    def accelerator(self) -> str:
        """The GPU's name; empty on the CPU."""
        return torch.cuda.get_device_name() if self._device == "cuda" else ""

    @property
    def title(self) -> str:
        return f"torch {torch.__version__} {self.accelerator or 'CPU'}, eager, {str(self._dtype).rpartition('.')[2]}"

    def prepare(self, policy: Policy) -> Prepared:
        module, executed = self._build(policy)
        try:
            self._call(module)
        except RuntimeError as error:
            model, reason = type(self._model).__name__, " ".join(str(error).split())[:200]
            raise InputError(f"--runtime torch: {model} cannot run in mixed types: {reason}") from error
        return Prepared(partial(self._timed, module), executed)

    def layer_times(self, policy: Policy, *, runs: int) -> Mapping[str, float]:
        module, _ = self._build(policy)
        marks: list[tuple[str, Any]] = []
        for name in policy:
            hook = partial(self._mark, marks, name)
            module.get_submodule(name).register_forward_pre_hook(hook, prepend=True)
        times: dict[str, list[float]] = {name: [] for name in policy}
        for index in range(_WARM_UP + runs):
            marks.clear()
            self._call(module)
            ends = [*(mark for _, mark in marks[1:]), self._now()]
            self._wait()
            spent = dict.fromkeys(policy, 0.0)
            for (name, start), end in zip(marks, ends, strict=True):
                spent[name] += 1e3 * self._milliseconds(start, end)
            for name, us in spent.items():
                times[name] += [us] if index >= _WARM_UP else []
        half = max(1, runs // 2)
        return {name: sum(sorted(values)[:half]) / half for name, values in times.items()}

    def _mark(self, marks: list[tuple[str, Any]], name: str, *_: Any) -> None:
        marks.append((name, self._now()))

    def _build(self, policy: Policy) -> tuple[nn.Module, dict[str, str]]:
        module = copy.deepcopy(self._model).eval().to(self._device)
        executed = {}
        for name, precision in policy.items():
            layer = module.get_submodule(name)
            dtype = self._dtype if precision == self.low else torch.float32
            layer.to(dtype)
            layer.register_forward_pre_hook(partial(_cast, dtype), with_kwargs=True)
            executed[name] = str(dtype)
        return module, executed

    def _timed(self, module: nn.Module) -> float:
        self._wait()
        start = time.perf_counter()
        self._call(module)
        self._wait()
        return (time.perf_counter() - start) * 1e3

    def _call(self, module: nn.Module) -> None:
        threads = torch.get_num_threads()
        if threads != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                call_model(module, self._one)
        finally:
            if threads != self._threads:
                torch.set_num_threads(threads)

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _now(self) -> Any:
        """An instant on the device."""
        if self._device != "cuda":
            return time.perf_counter() * 1e3
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _milliseconds(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end) if self._device == "cuda" else end - start)


def _cast(dtype: torch.dtype, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def to(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    return map_tensors(to, args), map_tensors(to, kwargs)
