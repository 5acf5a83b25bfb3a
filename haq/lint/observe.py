"""One float pass over training samples: what each layer reads, what computed it, which joins and gates there are."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from haq.quant import QuantizedModel
from haq.trace.layers import channel_axis

UNBOUNDED = {"silu": "SiLU", "gelu": "GELU", "hardswish": "hard-swish", "mish": "Mish", "elu": "ELU", "celu": "CELU"}
"""torch function -> name of an activation without an upper bound, with values on both sides of zero."""
_GATES = ("sigmoid", "hardsigmoid")
_PASSES = frozenset(
    (
        "view",
        "reshape",
        "flatten",
        "dropout",
        "contiguous",
        "permute",
        "transpose",
        "unsqueeze",
        "squeeze",
        "__getitem__",
    )
)
"""Functions that hand on the values of their input."""
_SUMS = ("add", "__add__", "__iadd__", "add_")
_PRODUCTS = ("mul", "__mul__", "__imul__", "__rmul__", "mul_")
_MOST = 2**16
"""Values of one tensor whose spread is looked at."""


@dataclass
class Read:
    """What a layer reads, over all batches.

    Attributes:
        activation: that computed it, by the name of its torch function; empty for anything else.
        channels: largest size of each input channel.
        largest: size of the largest value.
        tail: size below which 99.9 % of the values are, largest over the batches.
    """

    activation: str = ""
    channels: Tensor = field(default_factory=lambda: torch.zeros(0))
    largest: float = 0.0
    tail: float = 0.0
    join: tuple[str, int] | None = None
    """The join whose result it is, if it is one's."""


@dataclass
class Join:
    """A sum or a concatenation of tensors.

    Attributes:
        module: in whose forward it is computed.
        kind: `add` or `concat`.
        ranges: largest size of each operand.
    """

    module: str
    kind: str
    ranges: tuple[float, ...]


@dataclass
class Observations:
    """What the pass saw.

    Attributes:
        reads: layer -> what it reads.
        joins: by module and number.
        gates: module -> the layer that computes the gate, of products with a sigmoid of one value per channel.
        softmax: module -> largest number of values that one softmax normalises.
    """

    reads: dict[str, Read]
    joins: dict[tuple[str, int], Join]
    gates: dict[str, str]
    softmax: dict[str, int]


def observe(model: QuantizedModel, batches: Iterable[Any]) -> Observations:
    """Run the float model over `batches` of inputs and watch.

    Args:
        model: left float.
        batches: inputs on the model's device.
    """
    watch = _Watch()
    model.apply(None)
    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.module.named_modules():
            hooks.callback(module.register_forward_pre_hook(watch.entering(name)).remove)
            hooks.callback(module.register_forward_hook(watch.leaving(), always_call=True).remove)
        for name, module in model.layers.items():
            hooks.callback(module.register_forward_pre_hook(watch.reading(name, module), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(watch.wrote(name)).remove)
        for inputs in batches:
            watch.begin()
            with watch:
                model(inputs)
    return Observations(watch.reads, watch.joins, watch.gates, watch.softmax)


class _Watch(TorchFunctionMode):
    """Labels tensors with the activation that computed them and with the layer that wrote them."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: dict[str, Read] = {}
        self.joins: dict[tuple[str, int], Join] = {}
        self.gates: dict[str, str] = {}
        self.softmax: dict[str, int] = {}
        self._stack: list[str] = []
        self._labels: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._writers: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._joined: dict[int, tuple[weakref.ref[Tensor], tuple[str, int]]] = {}
        self._numbers: dict[str, int] = {}

    def begin(self) -> None:
        """A new batch."""
        self._numbers.clear()
        self._labels.clear()
        self._writers.clear()
        self._joined.clear()

    def entering(self, name: str) -> Callable[..., None]:
        return lambda *_: self._stack.append(name)

    def leaving(self) -> Callable[..., None]:
        def leave(*_: Any) -> None:
            self._stack.pop()

        return leave

    def reading(self, name: str, module: nn.Module) -> Callable[..., None]:
        def read(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            x = args[0] if args else kwargs.get("input")
            if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
                self._read(name, x, channel=channel_axis(module, x))

        return read

    def wrote(self, name: str) -> Callable[..., None]:
        def write(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._writers[id(output)] = (weakref.ref(output), name)

        return write

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if isinstance(result, Tensor) and result.is_floating_point():
            with torch._C.DisableTorchFunction():
                self._called(name, [a for a in _tensors(args) if a.is_floating_point()], result)
        return result

    def _called(self, name: str, operands: list[Tensor], result: Tensor) -> None:
        module = self._stack[-1] if self._stack else ""
        if name in UNBOUNDED or name in _GATES:
            self._labels[id(result)] = (weakref.ref(result), name)
        elif name in _PASSES and operands:
            if label := _of(self._labels, operands[0]):
                self._labels[id(result)] = (weakref.ref(result), label)
        elif name == "softmax":
            self.softmax[module] = max(self.softmax.get(module, 0), int(result.shape[-1]))
        # An entry may be of a tensor that is gone and had the same address: it is written over.
        if operands and name not in (*_SUMS, *_PRODUCTS, "cat") and (writer := _of(self._writers, operands[0])):
            self._writers[id(result)] = (weakref.ref(result), writer)
        if len(operands) == 1 and (join := _of(self._joined, operands[0])):
            self._joined[id(result)] = (weakref.ref(result), join)
        if name in _PRODUCTS and len(operands) == 2:
            self._product(module, operands)
        if (name in _SUMS and len(operands) == 2) or (name == "cat" and len(operands) > 1):
            self._join(module, "add" if name in _SUMS else "concat", operands, result)

    def _product(self, module: str, operands: list[Tensor]) -> None:
        for gate, other in (operands, operands[::-1]):
            small = gate.dim() == other.dim() > 2 and gate.shape[:2] == other.shape[:2] and gate.numel() < other.numel()
            if small and _of(self._labels, gate) in _GATES:
                self.gates[module] = _of(self._writers, gate)

    def _join(self, module: str, kind: str, operands: list[Tensor], result: Tensor) -> None:
        if any(tensor.dim() < 2 or isinstance(tensor, nn.Parameter) for tensor in operands):
            return
        number = self._numbers[module] = self._numbers.get(module, -1) + 1
        self._joined[id(result)] = (weakref.ref(result), (module, number))
        ranges = [float(tensor.abs().max()) for tensor in operands]
        before = self.joins.get((module, number))
        if before is not None and len(before.ranges) == len(ranges):
            ranges = [max(pair) for pair in zip(before.ranges, ranges, strict=True)]
        self.joins[module, number] = Join(module, kind, tuple(ranges))

    def _read(self, name: str, x: Tensor, *, channel: int) -> None:
        with torch._C.DisableTorchFunction():
            read = self.reads.setdefault(name, Read())
            label = _of(self._labels, x)
            read.activation = label if label in UNBOUNDED else read.activation
            read.join = _of(self._joined, x) or read.join
            size = x.detach().abs()
            channels = size.movedim(min(channel, x.dim() - 1), 0).flatten(1).amax(1).cpu()
            if read.channels.shape == channels.shape:
                channels = torch.maximum(read.channels, channels)
            read.channels = channels
            flat = size.flatten()[:: max(1, math.ceil(size.numel() / _MOST))].float().cpu()
            read.largest = max(read.largest, float(size.max()))
            read.tail = max(read.tail, float(torch.quantile(flat, 0.999)))


def _of(table: Mapping[int, tuple[weakref.ref[Tensor], Any]], tensor: Tensor) -> Any:
    """What the table says of this very tensor; empty where it says nothing."""
    entry = table.get(id(tensor))
    return entry[1] if entry is not None and entry[0]() is tensor else ""


def _tensors(values: Any) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
