"""The operators of `haq.engine.specification`, vectorised over a batch; equal to it bit for bit.

Sums of products run in float32 or float64, whichever the proof of `haq.engine.proof` makes exact: every partial sum is
then an integer below 2^24 or 2^53, and integers of that size are floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from haq.engine import transformer_kernels as transformer
from haq.engine.graph import Node, TensorFormat
from haq.engine.proof import largest_sum
from haq.engine.rescaling import divide, rescale

_EXACT_FLOAT32 = 2**24
Kernel = Callable[[Node, Sequence[Tensor], Sequence[TensorFormat], str], Tensor]


def _clamp(values: Tensor, fmt: TensorFormat) -> Tensor:
    return values.clamp_(fmt.low, fmt.high).to(torch.int32)


def _array(node: Node, key: str) -> Tensor:
    return torch.from_numpy(np.asarray(node.arrays[key], dtype=np.int64))


def requantize(accumulators: Tensor, node: Node, axis: int, rounding: str) -> Tensor:
    """Bias, factor per channel along `axis`, zero point, limits."""
    shape = [1] * accumulators.dim()
    shape[axis] = -1
    bias, multiplier, exponent = (_array(node, key).reshape(shape) for key in ("bias", "multiplier", "exponent"))
    shifted = accumulators.long() << node.attributes.get("accumulator_shift", 0)
    scaled = rescale(shifted.add_(bias), multiplier, exponent, rounding)
    return _clamp(scaled.add_(node.format.zero_point), node.format)


def _floats(node: Node, x: Tensor, read: TensorFormat) -> tuple[Tensor, Tensor]:
    """Input and weight without their zero points, in the narrowest float type whose sums are exact."""
    kind = torch.float32 if largest_sum(node, read) < _EXACT_FLOAT32 else torch.float64
    weight = centred_weight(node)
    return (x - read.zero_point).to(kind), weight.to(kind)


def centred_weight(node: Node) -> Tensor:
    """The weight less its zero point per output channel."""
    weight, zero = _array(node, "weight"), _array(node, "weight_zero")
    if node.op != "conv_transpose":
        return weight - zero.reshape(-1, *[1] * (weight.dim() - 1))
    groups = node.attributes["groups"]
    by_group = weight.reshape(groups, -1, *weight.shape[1:]) - zero.reshape(groups, 1, -1, 1, 1)
    return by_group.reshape(weight.shape)


def _convolution(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    x, weight = _floats(node, operands[0], read[0])
    top, left, bottom, right = node.attributes["padding"]
    stride, dilation, groups = (node.attributes[key] for key in ("stride", "dilation", "groups"))
    sums = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, stride, 0, dilation, groups)
    return requantize(sums, node, 1, rounding)


def _transposed(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    x, weight = _floats(node, operands[0], read[0])
    stride, dilation, groups = (node.attributes[key] for key in ("stride", "dilation", "groups"))
    sums = F.conv_transpose2d(x, weight, None, stride, 0, 0, groups, dilation)
    top, left, _, _ = node.attributes["padding"]
    _, height, width = node.shape
    spare = max(0, top + height - sums.shape[2]), max(0, left + width - sums.shape[3])
    sums = F.pad(sums, (0, spare[1], 0, spare[0]))[:, :, top : top + height, left : left + width]
    return requantize(sums, node, 1, rounding)


def _linear(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    x, weight = _floats(node, operands[0], read[0])
    return requantize(x @ weight.T, node, -1, rounding)


def _factor(node: Node, index: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(node.attributes["multipliers"][index]), torch.tensor(node.attributes["exponents"][index])


def _add(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    left, total = node.attributes["left_shift"], torch.zeros((), dtype=torch.int64)
    for index, (x, fmt, sign) in enumerate(zip(operands, read, node.attributes["signs"], strict=True)):
        total = total + sign * rescale((x.long() - fmt.zero_point) << left, *_factor(node, index), rounding)
    return _clamp(rescale(total, *_factor(node, 2), rounding) + node.format.zero_point, node.format)


def _multiply(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    x, y = (operand.long() - fmt.zero_point for operand, fmt in zip(operands, read, strict=True))
    return _clamp(rescale(x * y, *_factor(node, 0), rounding) + node.format.zero_point, node.format)


def _rescaled(x: Tensor, fmt: TensorFormat, node: Node, index: int, rounding: str) -> Tensor:
    scaled = rescale(x.long() - fmt.zero_point, *_factor(node, index), rounding)
    return _clamp(scaled + node.format.zero_point, node.format)


def _rescale(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    return _rescaled(operands[0], read[0], node, 0, rounding)


def _clamped(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    return operands[0].clamp(node.format.low, node.format.high)


def _sign(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    positive: Tensor = operands[0] >= read[0].zero_point
    return positive.int() * 2 - 1


def _ternary(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    x, threshold = operands[0] - read[0].zero_point, node.attributes["threshold"]
    above: Tensor = x > threshold
    below: Tensor = -x > threshold
    return above.int() - below.int()


def _table(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    return _array(node, "table").int()[(operands[0] - read[0].low).long()]


def _concat(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    pairs = enumerate(zip(operands, read, strict=True))
    return torch.cat([_rescaled(x, fmt, node, i, rounding) for i, (x, fmt) in pairs], node.attributes["axis"] + 1)


def _windows(node: Node, x: Tensor, fill: int) -> Tensor:
    """`[n, channels, positions of the kernel, height, width]`, padded with `fill`."""
    top, left, bottom, right = node.attributes["padding"]
    (rows, columns), (down, across), (dy, dx) = (node.attributes[key] for key in ("kernel", "stride", "dilation"))
    _, height, width = node.shape
    # A window may begin in the padding's far side when sizes are rounded up.
    far_y = max(0, (height - 1) * down + (rows - 1) * dy + 1 - (x.shape[2] + top + bottom))
    far_x = max(0, (width - 1) * across + (columns - 1) * dx + 1 - (x.shape[3] + left + right))
    padded = F.pad(x, (left, right + far_x, top, bottom + far_y), value=fill)
    spans = (height - 1) * down + 1, (width - 1) * across + 1
    parts = [
        padded[:, :, i * dy : i * dy + spans[0] : down, j * dx : j * dx + spans[1] : across]
        for i in range(rows)
        for j in range(columns)
    ]
    return torch.stack(parts, 2)


def _max_pool(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    return _clamp(_windows(node, operands[0], -(2**31)).amax(2), node.format)


def _average_pool(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    x = operands[0].long() - read[0].zero_point
    rows, columns = node.attributes["kernel"]
    if node.attributes["count_include_pad"]:
        count = torch.tensor(rows * columns)
    else:
        count = _windows(node, torch.ones_like(x[:1, :1]), 0).sum(2)
    return _mean_of(_windows(node, x, 0).sum(2), count, node, rounding)


def _mean_of(total: Tensor, count: Tensor, node: Node, rounding: str) -> Tensor:
    multiplier, exponent = _factor(node, 0)
    quotient = divide(total * multiplier, count << (31 - exponent), rounding)
    return _clamp(quotient + node.format.zero_point, node.format)


def _mean(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    axes = [axis + 1 for axis in node.attributes["axes"]]
    count = int(np.prod([operands[0].shape[axis] for axis in axes]))
    total = (operands[0].long() - read[0].zero_point).sum(axes, keepdim=True)
    return _mean_of(total, torch.tensor(count), node, rounding)


def _reshape(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    return operands[0].reshape(-1, *node.shape)


def _transpose(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    return operands[0].permute(0, *(axis + 1 for axis in node.attributes["axes"]))


def _cut(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    axis, start, step = (node.attributes[key] for key in ("axis", "start", "step"))
    index = torch.arange(start, start + step * node.shape[axis], step)
    return operands[0].index_select(axis + 1, index)


def _pad(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    pairs = [size for pair in reversed(node.attributes["padding"]) for size in pair]
    return F.pad(operands[0], pairs, value=read[0].zero_point)


def _matmul(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    x, y = ((operand - fmt.zero_point).double() for operand, fmt in zip(operands, read, strict=True))
    scaled = rescale((x @ y).long(), *_factor(node, 0), rounding)
    return _clamp(scaled + node.format.zero_point, node.format)


def _softmax(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    x = operands[0].long()
    distance = x - x.amax(-1, keepdim=True)
    if "table" in node.arrays:
        parts = _array(node, "table")[-distance]
    else:
        parts = transformer.exponential(distance, node.attributes["constants"])
    shares = (parts << node.format.bits) // parts.sum(-1, keepdim=True).clamp_(min=1)
    return _clamp(shares + node.format.zero_point, node.format)


def _layer_norm(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    return requantize(transformer.normalized(operands[0].long(), node.attributes["epsilon"]), node, -1, rounding)


def _gelu(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    value = transformer.gelu(operands[0].long() - read[0].zero_point, node.attributes["constants"])
    return _clamp(rescale(value, *_factor(node, 0), rounding) + node.format.zero_point, node.format)


def _embedding(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    return _array(node, "table").int()[operands[0].long()]


def _constant(node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat], rounding: str) -> Tensor:
    return _array(node, "value").int()[None]


KERNELS: Mapping[str, Kernel] = {
    "add": _add,
    "average_pool": _average_pool,
    "clamp": _clamped,
    "concat": _concat,
    "constant": _constant,
    "conv": _convolution,
    "conv_transpose": _transposed,
    "cut": _cut,
    "embedding": _embedding,
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "max_pool": _max_pool,
    "mean": _mean,
    "mul": _multiply,
    "pad": _pad,
    "rescale": _rescale,
    "reshape": _reshape,
    "sign": _sign,
    "softmax": _softmax,
    "table": _table,
    "ternary": _ternary,
    "transpose": _transpose,
}
