"""From a captured graph to an integer model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn
from torch.fx import Node as FxNode

from haq.deployed.state import ModelState
from haq.engine.captured import Captured, captured, op_name
from haq.engine.dyadic import ROUNDINGS, dyadic
from haq.engine.formats import Wanted
from haq.engine.graph import IntegerModel, Node, TensorFormat
from haq.engine.proof import check_accumulators
from haq.quant.formats.binary import Binary
from haq.quant.formats.integer import PerTensorInteger
from haq.quant.formats.ternary import Ternary
from haq.values.errors import InputError

NONLINEAR = ("table", "polynomial")
ARITHMETIC = ("conv", "conv_transpose", "linear", "add", "mul", "concat", "average_pool", "mean", "rescale", "max_pool")
"""Operators that clamp what they write, so that a ReLU behind them is another limit of theirs."""


@dataclass(frozen=True)
class LoweringOptions:
    """What is chosen beside the policy.

    Attributes:
        rounding: in `haq.engine.dyadic.ROUNDINGS`.
        output_bits: of the model's outputs, 8 or 16.
        nonlinear: `table`: 256 entries; `polynomial`: I-BERT's, for GELU and softmax.
    """

    rounding: str = "half_away"
    output_bits: int = 16
    nonlinear: str = "table"

    def __post_init__(self) -> None:
        for key, value, known in (
            ("rounding", self.rounding, ROUNDINGS),
            ("output bits", self.output_bits, (8, 16)),
            ("nonlinear", self.nonlinear, NONLINEAR),
        ):
            if value not in known:
                raise InputError(f"{key} {value!r}: unknown; known: {', '.join(map(str, known))}")


@dataclass(frozen=True, slots=True)
class Value:
    """Where a value of the graph is: a node of the integer model, read in a format."""

    node: str
    format: TensorFormat


def lower(model: nn.Module, state: ModelState, inputs: Any, options: LoweringOptions | None = None) -> IntegerModel:
    """The integer model of a policy.

    Args:
        model: the float architecture, on the CPU.
        state: its weights and ranges, as deployed.
        inputs: calibration samples, two or more: ranges of sums and of other values that no layer reads.
        options: rounding and the like.

    Raises:
        InputError: an operator, a format or a range that integers cannot do; names it and the remedy.
    """
    options = options or LoweringOptions()
    graph = captured(model, state, inputs)
    return Builder(graph, options).build()


class Builder:
    """Writes integer nodes, one operator of the graph after the other.

    Attributes:
        graph: what is lowered.
        wanted: the format of each value.
        options: the user's.
    """

    def __init__(self, graph: Captured, options: LoweringOptions) -> None:
        self.graph, self.options = graph, options
        self.wanted = Wanted(graph, output_bits=options.output_bits)
        self._values: dict[FxNode, Value] = {}
        self._nodes: dict[str, Node] = {}
        self._conversions: dict[tuple[Any, ...], Value] = {}

    def build(self) -> IntegerModel:
        """The whole model, its accumulators proved."""
        from haq.engine.operators import lower_node  # the operators call back

        for node in self.graph.nodes:
            if node.op == "placeholder":
                self._input(node)
            else:
                lower_node(self, node)
        outputs = tuple(self._output(node) for node in self.graph.outputs)
        policy = {name: str(layer.precision) for name, layer in self.graph.state.layers.items()}
        model = IntegerModel(_reached(self._nodes, outputs), outputs, self.options.rounding, policy)
        check_accumulators(model)
        return model

    def shape(self, node: FxNode) -> tuple[int, ...]:
        """Of one sample.

        Raises:
            InputError: the leading dimension is not the batch.
        """
        shape = tuple(node.meta["val"].shape)
        if not shape or shape[0] != self.graph.batch:
            raise InputError(
                f"{describe(node)} puts the batch elsewhere than into the first dimension ({list(shape)}); the "
                "integer engine needs it there"
            )
        return shape[1:]

    def value(self, node: FxNode) -> Value:
        """What `node` is in integers.

        Raises:
            InputError: nothing.
        """
        if node not in self._values:
            raise InputError(f"{describe(node)} has no integers")
        return self._values[node]

    def bind(self, node: FxNode, value: Value) -> None:
        """`node` is `value`."""
        self._values[node] = value

    def integer_node(self, value: Value) -> Node:
        return self._nodes[value.node]

    def add(self, node: Node) -> Value:
        """Append an integer node under a name that nothing has."""
        name, count = node.name, 1
        while name in self._nodes:
            name, count = f"{node.name}_{count}", count + 1
        self._nodes[name] = replace(node, name=name)
        return Value(name, node.format)

    def emit(
        self, node: FxNode, op: str, operands: list[Value], fmt: TensorFormat, *, layer: str = "", **parts: Any
    ) -> None:
        """Append the integer node of `node`; keywords are arrays (numpy) and attributes."""
        arrays = {key: part for key, part in parts.items() if isinstance(part, np.ndarray)}
        attributes = {key: part for key, part in parts.items() if key not in arrays}
        names = tuple(operand.node for operand in operands)
        self.bind(node, self.add(Node(node.name, op, names, self.shape(node), fmt, attributes, arrays, layer)))

    def clamp(self, node: FxNode, low: float | None, high: float | None) -> None:
        """`node` is its first argument within limits: those of the operator before, where nothing else reads it."""
        source: Any = node.args[0]
        value = self.value(source)
        fmt = value.format
        least = fmt.low if low is None else max(fmt.low, round_to(low, fmt))
        most = fmt.high if high is None else min(fmt.high, round_to(high, fmt))
        least, most = min(least, fmt.high), max(most, fmt.low)
        narrowed = replace(fmt, low=least, high=max(least, most))
        before = self._nodes[value.node]
        if before.op in ARITHMETIC and len(source.users) == 1 and before.format.same_codes(fmt):
            self._nodes[value.node] = replace(before, format=narrowed)
            self.bind(node, Value(value.node, narrowed))
        else:
            self.emit(node, "clamp", [value], narrowed)

    def get(self, node: FxNode, fmt: TensorFormat) -> Value:
        """`node` in integers of `fmt`."""
        return self.converted(self.value(node), fmt)

    def converted(self, value: Value, fmt: TensorFormat) -> Value:
        """`value` in integers of `fmt`: itself, or by a rescaling node that is made once."""
        if value.format.same_codes(fmt) and fmt.low <= value.format.low and value.format.high <= fmt.high:
            return value
        return self._once(value, fmt, "rescale", factors(value.format.scale / fmt.scale))

    def quantized(self, node: FxNode, quantizer: Any) -> Value | None:
        """`node` as a ternary or binary quantizer gives it; `None` for other quantizers."""
        value = self.value(node)
        if isinstance(quantizer, Binary):
            return self._once(value, TensorFormat(-1, 1, 0, float(quantizer.scale)), "sign", {})
        if isinstance(quantizer, Ternary):
            threshold = int(float(quantizer.threshold) / value.format.scale)
            attributes = {"threshold": threshold}
            return self._once(value, TensorFormat(-1, 1, 0, float(quantizer.scale)), "ternary", attributes)
        return None

    def _once(self, value: Value, fmt: TensorFormat, op: str, attributes: dict[str, Any]) -> Value:
        key = (value.node, value.format, fmt, op, str(attributes))
        if key not in self._conversions:
            shape = self._nodes[value.node].shape
            made = Node(f"{value.node}_{op}", op, (value.node,), shape, fmt, attributes)
            self._conversions[key] = self.add(made)
        return self._conversions[key]

    def _input(self, node: FxNode) -> None:
        if not node.meta["val"].is_floating_point():
            fmt = TensorFormat(0, 2**31 - 1, 0, 1.0)
        else:
            fmt = self.wanted.codes(node) or self.wanted.narrow(node)
        self.bind(node, self.add(Node(node.name, "input", (), self.shape(node), fmt)))

    def _output(self, node: FxNode) -> str:
        value = self.get(node, self.wanted.of(node))
        held = self._nodes[value.node]
        if held.op == "input" or not held.format.same_codes(value.format):
            value = self._once(value, value.format, "rescale", factors(1.0))
        return value.node


def factors(*values: float) -> dict[str, Any]:
    """The attributes of dyadic factors."""
    numbers = [dyadic(value) for value in values]
    return {"multipliers": [n.multiplier for n in numbers], "exponents": [n.exponent for n in numbers]}


def round_to(value: float, fmt: TensorFormat) -> int:
    """The integer of `fmt` nearest to `value`, its limits apart."""
    return round(value / fmt.scale) + fmt.zero_point


def describe(node: FxNode) -> str:
    """The operator and the module that runs it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    where = f" of module {stack[-1][0]!r}" if stack and stack[-1][0] else ""
    return f"operator {op_name(node)}{where}"


def _reached(nodes: dict[str, Node], outputs: tuple[str, ...]) -> tuple[Node, ...]:
    """Inputs, and the nodes that an output needs, in order."""
    needed = set(outputs)
    for node in reversed(nodes.values()):
        if node.name in needed:
            needed.update(node.inputs)
    inputs = [node for node in nodes.values() if node.op == "input"]
    return (*inputs, *(node for node in nodes.values() if node.op != "input" and node.name in needed))


def is_float(quantizer: Any) -> bool:
    """Whether a layer's input is no integer."""
    return not isinstance(quantizer, PerTensorInteger | Ternary | Binary)


__all__ = ["Builder", "LoweringOptions", "Value", "describe", "factors", "is_float", "lower", "round_to"]
