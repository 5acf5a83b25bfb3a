"""An integer network as plain values: nodes in order, each an operator on integers with integer parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from haq.values.errors import InputError


@dataclass(frozen=True, slots=True)
class TensorFormat:
    """How the integers of a tensor are to be read: value = (integer - zero_point) * scale.

    Attributes:
        low: least integer.
        high: greatest integer.
        zero_point: stands for 0.
        scale: needed only where floats become integers or integers floats, outside the inference.
    """

    low: int
    high: int
    zero_point: int
    scale: float

    @property
    def bits(self) -> int:
        """Of the narrowest integers that hold low to high, shifted as they are stored."""
        return max(1, (self.high - self.low).bit_length())

    @property
    def largest(self) -> int:
        """The largest absolute value of integer - zero_point."""
        return max(abs(self.low - self.zero_point), abs(self.high - self.zero_point))

    def same_codes(self, other: TensorFormat) -> bool:
        """Whether an integer means the same in both, the limits apart."""
        return (self.zero_point, self.scale) == (other.zero_point, other.scale)


@dataclass(frozen=True, eq=False)
class Node:
    """One operator.

    Attributes:
        name: unique.
        op: a name in `haq.engine.kernels.KERNELS`.
        inputs: names of nodes before it.
        shape: of its output for one sample, without the batch.
        format: of its output.
        attributes: integers, and lists of them.
        arrays: integer arrays: weights, biases, multipliers, tables.
        layer: the layer of the policy that it computes, empty for all others.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    format: TensorFormat
    attributes: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    layer: str = ""

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class IntegerModel:
    """A network that computes with integers only.

    Attributes:
        nodes: in execution order; those with op `input` first.
        outputs: names of nodes.
        rounding: of every rescaling, in `haq.engine.dyadic.ROUNDINGS`.
        policy: layer -> precision, as `w4a8`.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    rounding: str
    policy: Mapping[str, str]

    @property
    def inputs(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.op == "input")

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def check(self) -> None:
        """Raise unless nodes read only what came before, with names that stand once.

        Raises:
            InputError: names the node.
        """
        seen: set[str] = set()
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in seen]
            if missing or node.name in seen:
                what = f"reads {missing[0]!r}, which is not computed before it" if missing else "appears twice"
                raise InputError(f"node {node.name!r} {what}; export the model anew")
            seen.add(node.name)
        if lost := [name for name in self.outputs if name not in seen]:
            raise InputError(f"the output {lost[0]!r} is no node; export the model anew")
