"""Parts of the specification: nested lists, windows, and the operators that only move integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from haq.engine.dyadic import Dyadic
from haq.engine.graph import Node, TensorFormat

Nested = Any
"""Nested lists of integers, or one integer."""


def clamp(value: int, fmt: TensorFormat) -> int:
    """The nearest integer that the format has."""
    return min(max(value, fmt.low), fmt.high)


def window(
    attributes: Mapping[str, Any], row: int, column: int, height: int, width: int
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """The positions of the kernel and of the input that meet at an output position, those in the padding left out."""
    (rows, columns), stride = attributes["kernel"], attributes["stride"]
    top, left, _, _ = attributes["padding"]
    dilation = attributes["dilation"]
    for i, j in product(range(rows), range(columns)):
        y, z = row * stride[0] - top + i * dilation[0], column * stride[1] - left + j * dilation[1]
        if 0 <= y < height and 0 <= z < width:
            yield (i, j), (y, z)


def over_last(function: Callable[[Sequence[int]], Any], values: Nested) -> Nested:
    """`function` of every innermost list."""
    if isinstance(values[0], list):
        return [over_last(function, entry) for entry in values]
    return function(values)


def elementwise(function: Callable[..., int], operands: Sequence[Nested], shape: Sequence[int]) -> Nested:
    """`function` of the operands' elements, broadcast to `shape`."""
    if not shape:
        return function(*operands)

    def part(operand: Nested, index: int) -> Nested:
        if not isinstance(operand, list) or _depth(operand) < len(shape):
            return operand
        return operand[0 if len(operand) == 1 else index]

    return [
        elementwise(function, [part(operand, index) for operand in operands], shape[1:]) for index in range(shape[0])
    ]


def _depth(value: Nested) -> int:
    return 1 + _depth(value[0]) if isinstance(value, list) else 0


def factor_of(node: Node, index: int) -> Dyadic:
    """A dyadic factor of the node."""
    return Dyadic(node.attributes["multipliers"][index], node.attributes["exponents"][index])


def joined(parts: Sequence[Nested], axis: int) -> Nested:
    """The parts one after the other along `axis`."""
    if axis == 0:
        return [entry for part in parts for entry in part]
    return [joined(entries, axis - 1) for entries in zip(*parts, strict=True)]


def shape_of(value: Nested) -> tuple[int, ...]:
    """The shape of nested lists."""
    return (len(value), *shape_of(value[0])) if isinstance(value, list) else ()


def at(value: Nested, index: Sequence[Any]) -> int:
    """The element at `index`."""
    for place in index:
        value = value[place]
    return int(value)


def build(function: Callable[..., int], shape: Sequence[int], index: tuple[int, ...] = ()) -> Nested:
    """Nested lists of `function(*index)`."""
    if not shape:
        return function(*index)
    return [build(function, shape[1:], (*index, place)) for place in range(shape[0])]


def flat(value: Nested) -> list[int]:
    """All elements, the last index fastest."""
    return [element for entry in value for element in flat(entry)] if isinstance(value, list) else [value]


def reshape(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """The same elements in another shape."""
    elements = iter(flat(operands[0]))
    return build(lambda *_: next(elements), node.shape)


def transpose(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """Axis i of the result is axis `axes[i]` of the operand."""
    axes = node.attributes["axes"]
    return build(lambda *index: at(operands[0], [index[axes.index(k)] for k in range(len(axes))]), node.shape)


def cut(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """Every `step`-th element from `start` on, along an axis."""
    axis, start, step = (node.attributes[key] for key in ("axis", "start", "step"))
    return build(
        lambda *index: at(operands[0], [i * step + start if k == axis else i for k, i in enumerate(index)]), node.shape
    )


def pad(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """Zero points around the operand: `[before, after]` of each axis."""
    before = [pair[0] for pair in node.attributes["padding"]]
    inside = shape_of(operands[0])

    def one(*index: int) -> int:
        place = [i - b for i, b in zip(index, before, strict=True)]
        held = all(0 <= i < size for i, size in zip(place, inside, strict=True))
        return at(operands[0], place) if held else read[0].zero_point

    return build(one, node.shape)
