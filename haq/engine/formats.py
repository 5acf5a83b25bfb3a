"""In which integers each value of a captured graph is kept: the codes that its readers want, or wide ones."""

from __future__ import annotations

from torch.fx import Node

from haq.engine.captured import Captured, op_name
from haq.engine.graph import TensorFormat
from haq.quant.formats.base import Quantizer
from haq.quant.formats.integer import PerTensorInteger
from haq.values.errors import InputError

MONOTONE = ("relu", "hardtanh", "clamp", "clamp_min", "clamp_max", "relu6", "max_pool2d", "max_pool1d")
"""Operators that give the same whether integers or what they stand for go in, where these are the nearest integers."""
MOVES = frozenset(
    [
        *("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "slice"),
        *("select", "split", "split_with_sizes", "getitem", "clone", "contiguous", "dropout", "alias", "expand", "pad"),
        *("constant_pad_nd", "_to_copy", "detach", "lift_fresh_copy"),
    ]
)
"""Operators that carry values from one place to another."""
UNARY = frozenset(
    [
        *("sigmoid", "tanh", "silu", "gelu", "hardswish", "hardsigmoid", "leaky_relu", "elu", "celu", "selu", "mish"),
        *("softplus", "exp", "sqrt", "abs", "neg", "rsub", "square", "log_sigmoid", "hardshrink", "softsign", "erf"),
    ]
)
"""Functions of one variable, tabulated."""
WIDE_BITS = 16
_LARGEST_BITS = 8


def symmetric(limit: float, bits: int) -> TensorFormat:
    """Integers of `bits` bits around 0 that reach `limit`."""
    top = 2 ** (bits - 1) - 1
    return TensorFormat(-top, top, 0, limit / top if limit > 0 else 1.0)


def affine(low: float, high: float, bits: int = _LARGEST_BITS) -> TensorFormat:
    """Integers of `bits` bits, from -2^(bits - 1), that cover low to high and hold 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    least, greatest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = (high - low) / (greatest - least) or 1.0
    zero = min(max(round(least - low / scale), least), greatest)
    return TensorFormat(least, greatest, zero, scale)


def code_format(quantizer: Quantizer) -> TensorFormat | None:
    """The integers of a layer's input, shifted to be signed; `None` for ternary, binary and floats."""
    if not isinstance(quantizer, PerTensorInteger) or quantizer.quant_max - quantizer.quant_min >= 2**_LARGEST_BITS:
        return None
    shift = 0 if quantizer.quant_min < 0 else (quantizer.quant_max + 1) // 2
    low, high = quantizer.quant_min - shift, quantizer.quant_max - shift
    return TensorFormat(low, high, quantizer.zero_point - shift, quantizer.scale)


class Wanted:
    """The format of each value.

    Args:
        graph: what is lowered.
        output_bits: of the outputs.
        slack: how far beyond what was seen wide integers reach.
    """

    def __init__(self, graph: Captured, *, output_bits: int, slack: float = 2.0) -> None:
        self._graph, self._output_bits, self._slack = graph, output_bits, slack
        self._found: dict[Node, TensorFormat | None] = {}
        for node in reversed(graph.nodes):
            self._found[node] = self._common(node)

    def codes(self, node: Node) -> TensorFormat | None:
        """What all readers of `node` want, where they want the same codes of 8 bits or fewer."""
        return self._found[node]

    def of(self, node: Node) -> TensorFormat:
        """The format that `node` is computed in."""
        return self._found[node] or self.wide(node)

    def wide(self, node: Node) -> TensorFormat:
        """16-bit integers with room beyond what was seen."""
        low, high = self.range(node)
        return symmetric(max(-low, high) * self._slack, WIDE_BITS)

    def narrow(self, node: Node) -> TensorFormat:
        """8-bit integers over what was seen."""
        return affine(*self.range(node))

    def range(self, node: Node) -> tuple[float, float]:
        """Least and greatest of the values of `node`.

        Raises:
            InputError: it holds no numbers.
        """
        if node not in self._graph.seen:
            raise InputError(
                f"the operator {op_name(node)} ({node.name}) makes no numbers; integers cannot stand for it"
            )
        return self._graph.seen[node]

    def _common(self, node: Node) -> TensorFormat | None:
        if node in self._graph.outputs:
            return self._output(node)
        readers = [user for user in node.users if user.op == "call_function"]
        wanted = {self._demand(node, user) for user in readers}
        return wanted.pop() if len(wanted) == 1 else None

    def _output(self, node: Node) -> TensorFormat | None:
        if node not in self._graph.seen:
            return None
        low, high = self._graph.seen[node]
        slack = self._slack if self._output_bits > _LARGEST_BITS else 1.25
        return symmetric(max(-low, high) * slack, self._output_bits)

    def _demand(self, node: Node, user: Node) -> TensorFormat | None:
        name = op_name(user)
        if user in self._graph.layers:
            return code_format(self._graph.layer(user).input) if user.args[0] is node else None
        if name in UNARY:
            return self.narrow(node) if node in self._graph.seen else None
        if name in MONOTONE or (name in MOVES and node in self._graph.seen):
            return self._found.get(user)
        return None
