"""What an integer network computes, operator by operator, in plain Python integers: slow, short, and the reference.

Every function takes one sample as nested lists. `haq.engine.kernels` and the generated C equal it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

from haq.engine import transformer_specification as transformer
from haq.engine.dyadic import Dyadic, divide, rescale
from haq.engine.graph import IntegerModel, Node, TensorFormat
from haq.engine.specification_parts import (
    Nested,
    at,
    build,
    clamp,
    cut,
    elementwise,
    factor_of,
    joined,
    over_last,
    pad,
    reshape,
    shape_of,
    transpose,
    window,
)


def run(model: IntegerModel, sample: Mapping[str, Nested]) -> list[Nested]:
    """The outputs of `model` for one sample: name of an input node -> its integers."""
    values: dict[str, Nested] = {}
    formats = {node.name: node.format for node in model.nodes}
    for node in model.nodes:
        if node.op == "input":
            values[node.name] = sample[node.name]
            continue
        operands = [values[name] for name in node.inputs]
        read = [formats[name] for name in node.inputs]
        values[node.name] = OPERATORS[node.op](node, operands, read, model.rounding)
    return [values[name] for name in model.outputs]


def requantize(accumulator: int, node: Node, channel: int, rounding: str) -> int:
    """An accumulator as an integer of the node's format: bias, dyadic factor of the channel, zero point, limits.

    The accumulator is shifted left first, so that the bias is as fine as 32 bits allow.
    """
    by = Dyadic(int(node.arrays["multiplier"][channel]), int(node.arrays["exponent"][channel]))
    biased = (accumulator << node.attributes.get("accumulator_shift", 0)) + int(node.arrays["bias"][channel])
    return clamp(rescale(biased, by, rounding) + node.format.zero_point, node.format)


def convolution(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """Cross-correlation; padding is the zero point, which contributes 0."""
    x, zero = operands[0], read[0].zero_point
    weight, weight_zero = node.arrays["weight"].tolist(), node.arrays["weight_zero"].tolist()
    channels, height, width = node.shape
    inner = len(weight[0])
    per_group = channels // node.attributes["groups"]

    def accumulate(out: int, row: int, column: int) -> int:
        first = out // per_group * inner
        return sum(
            (weight[out][c][i][j] - weight_zero[out]) * (x[first + c][y][z] - zero)
            for c in range(inner)
            for (i, j), (y, z) in window(node.attributes, row, column, len(x[0]), len(x[0][0]))
        )

    return [
        [
            [requantize(accumulate(out, row, column), node, out, rounding) for column in range(width)]
            for row in range(height)
        ]
        for out in range(channels)
    ]


def transposed_convolution(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """The transpose of a convolution: every input is spread over the outputs that its kernel reaches."""
    x, zero = operands[0], read[0].zero_point
    weight, weight_zero = node.arrays["weight"].tolist(), node.arrays["weight_zero"].tolist()
    attributes = node.attributes
    (stride_y, stride_x), (dilation_y, dilation_x) = attributes["stride"], attributes["dilation"]
    top, left, _, _ = attributes["padding"]
    channels, height, width = node.shape
    outer, inner = channels // attributes["groups"], len(x) // attributes["groups"]
    sums = [[[0] * width for _ in range(height)] for _ in range(channels)]
    for c, o in product(range(len(x)), range(outer)):
        out = c // inner * outer + o
        for y, z in product(range(len(x[0])), range(len(x[0][0]))):
            for i, j in product(range(attributes["kernel"][0]), range(attributes["kernel"][1])):
                row, column = y * stride_y - top + i * dilation_y, z * stride_x - left + j * dilation_x
                if 0 <= row < height and 0 <= column < width:
                    sums[out][row][column] += (weight[c][o][i][j] - weight_zero[out]) * (x[c][y][z] - zero)
    return [[[requantize(value, node, out, rounding) for value in row] for row in sums[out]] for out in range(channels)]


def linear(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """The last dimension times a matrix `[out, in]`."""
    weight, weight_zero, zero = node.arrays["weight"].tolist(), node.arrays["weight_zero"].tolist(), read[0].zero_point

    def row(values: Sequence[int]) -> list[int]:
        return [
            requantize(
                sum((w - weight_zero[o]) * (v - zero) for w, v in zip(line, values, strict=True)), node, o, rounding
            )
            for o, line in enumerate(weight)
        ]

    return over_last(row, operands[0])


def add(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """A sum or difference as in TFLite: both operands shifted left, rescaled to twice the larger scale, then out."""
    left = node.attributes["left_shift"]
    factors = [factor_of(node, index) for index in range(3)]
    signs = node.attributes["signs"]

    def one(*pair: int) -> int:
        parts = (
            sign * rescale((value - fmt.zero_point) << left, by, rounding)
            for sign, value, fmt, by in zip(signs, pair, read, factors, strict=False)
        )
        return clamp(rescale(sum(parts), factors[2], rounding) + node.format.zero_point, node.format)

    return elementwise(one, operands, node.shape)


def multiply(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """A product, element by element."""
    a, b = read
    by = factor_of(node, 0)

    def one(x: int, y: int) -> int:
        scaled = rescale((x - a.zero_point) * (y - b.zero_point), by, rounding)
        return clamp(scaled + node.format.zero_point, node.format)

    return elementwise(one, operands, node.shape)


def rescaled(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """Another scale, zero point and limits."""
    by, zero = factor_of(node, 0), read[0].zero_point
    return elementwise(
        lambda x: clamp(rescale(x - zero, by, rounding) + node.format.zero_point, node.format), operands, node.shape
    )


def clamped(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """ReLU and its family: other limits."""
    return elementwise(lambda x: clamp(x, node.format), operands, node.shape)


def sign(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """1 where x >= 0, else -1."""
    zero = read[0].zero_point
    return elementwise(lambda x: 1 if x >= zero else -1, operands, node.shape)


def ternary(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """The sign where |x| is above a threshold, else 0."""
    zero, threshold = read[0].zero_point, node.attributes["threshold"]
    return elementwise(lambda x: (x - zero > threshold) - (zero - x > threshold), operands, node.shape)


def table(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """Any function of one variable, by its values at each integer of the input's format."""
    entries, low = node.arrays["table"].tolist(), read[0].low
    return elementwise(lambda x: entries[x - low], operands, node.shape)


def concat(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """Operands one after the other along an axis, each rescaled."""
    parts = []
    for index, (operand, fmt) in enumerate(zip(operands, read, strict=True)):
        by = factor_of(node, index)

        def one(x: int, by: Dyadic = by, fmt: TensorFormat = fmt) -> int:
            return clamp(rescale(x - fmt.zero_point, by, rounding) + node.format.zero_point, node.format)

        parts.append(elementwise(one, [operand], shape_of(operand)))
    return joined(parts, node.attributes["axis"])


def max_pool(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """The greatest integer in each window; what lies in the padding does not count."""

    def largest(plane: Nested, row: int, column: int) -> int:
        found = window(node.attributes, row, column, len(plane), len(plane[0]))
        return clamp(max(plane[y][z] for _, (y, z) in found), node.format)

    return _pooled(largest, operands[0], node.shape)


def average_pool(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """The mean of each window, rounded once."""
    zero, whole = read[0].zero_point, node.attributes["kernel"][0] * node.attributes["kernel"][1]

    def average(plane: Nested, row: int, column: int) -> int:
        inside = [plane[y][z] - zero for _, (y, z) in window(node.attributes, row, column, len(plane), len(plane[0]))]
        return mean_of(sum(inside), whole if node.attributes["count_include_pad"] else len(inside), node, rounding)

    return _pooled(average, operands[0], node.shape)


def _pooled(function: Callable[[Nested, int, int], int], x: Nested, shape: Sequence[int]) -> Nested:
    _, height, width = shape
    return [[[function(plane, row, column) for column in range(width)] for row in range(height)] for plane in x]


def mean_of(total: int, count: int, node: Node, rounding: str) -> int:
    """total / count times the node's factor, rounded once."""
    by = factor_of(node, 0)
    quotient = divide(total * by.multiplier, count << (31 - by.exponent), rounding)
    return clamp(quotient + node.format.zero_point, node.format)


def mean(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """The mean over the axes, which keep length 1 (a reshape takes them away)."""
    x, zero, axes = operands[0], read[0].zero_point, node.attributes["axes"]
    shape = shape_of(x)
    ranges = [range(size) if axis in axes else (None,) for axis, size in enumerate(shape)]
    count = 1
    for axis in axes:
        count *= shape[axis]

    def one(*index: int) -> int:
        places = product(*(r if None not in r else (i,) for r, i in zip(ranges, index, strict=True)))
        return mean_of(sum(at(x, place) - zero for place in places), count, node, rounding)

    return build(one, [1 if axis in axes else size for axis, size in enumerate(shape)])


def matmul(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """`[..., n, k]` times `[..., k, m]`, batch dimensions alike."""
    (a, b), by = read, factor_of(node, 0)

    def one(left: Nested, right: Nested) -> Nested:
        if isinstance(left[0][0], list):
            return [one(x, y) for x, y in zip(left, right, strict=True)]
        return [
            [
                clamp(
                    rescale(
                        sum((x - a.zero_point) * (y - b.zero_point) for x, y in zip(row, column, strict=True)),
                        by,
                        rounding,
                    )
                    + node.format.zero_point,
                    node.format,
                )
                for column in zip(*right, strict=True)
            ]
            for row in left
        ]

    return one(*operands)


def softmax(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """Over the last dimension, by I-BERT's polynomial or a table."""
    if "table" in node.arrays:
        entries = node.arrays["table"].tolist()
        return over_last(lambda row: transformer.softmax_by_table(row, entries, node.format), operands[0])
    constants = node.attributes["constants"]
    return over_last(lambda row: transformer.softmax(row, constants, node.format), operands[0])


def layer_norm(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """Over the last dimension, then factor and bias of each of its elements."""

    def row(values: Sequence[int]) -> list[int]:
        normed = transformer.normalized(values, node.attributes["epsilon"])
        return [requantize(value, node, index, rounding) for index, value in enumerate(normed)]

    return over_last(row, operands[0])


def gelu(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """By I-BERT's polynomial."""
    zero, by = read[0].zero_point, factor_of(node, 0)

    def one(x: int) -> int:
        value = transformer.gelu(x - zero, node.attributes["constants"])
        return clamp(rescale(value, by, rounding) + node.format.zero_point, node.format)

    return elementwise(one, operands, node.shape)


def embedding(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """The rows of a table that the indices name."""
    rows = node.arrays["table"].tolist()
    if isinstance(operands[0], list):
        return [embedding(node, [entry], read, rounding) for entry in operands[0]]
    return rows[operands[0]]


def constant(node: Node, operands: list[Nested], read: list[TensorFormat], rounding: str) -> Nested:
    """Integers that are part of the model."""
    return node.arrays["value"].tolist()


OPERATORS: Mapping[str, Callable[[Node, list[Nested], list[TensorFormat], str], Nested]] = {
    "add": add,
    "average_pool": average_pool,
    "clamp": clamped,
    "concat": concat,
    "constant": constant,
    "conv": convolution,
    "conv_transpose": transposed_convolution,
    "cut": cut,
    "embedding": embedding,
    "gelu": gelu,
    "layer_norm": layer_norm,
    "linear": linear,
    "matmul": matmul,
    "max_pool": max_pool,
    "mean": mean,
    "mul": multiply,
    "pad": pad,
    "rescale": rescaled,
    "reshape": reshape,
    "sign": sign,
    "softmax": softmax,
    "table": table,
    "ternary": ternary,
    "transpose": transpose,
}
