"""Proof that accumulators do not overflow, from a layer's weights and the range of its input."""

from __future__ import annotations

import numpy as np

from haq.engine.graph import IntegerModel, Node, TensorFormat
from haq.values.errors import InputError

ACCUMULATORS = ("conv", "conv_transpose", "linear")
LARGEST = 2**31 - 1


def _by_output(node: Node) -> np.ndarray:
    """The weights of each output channel less their zero point, `[out, terms]`, int64."""
    weight = np.asarray(node.arrays["weight"], dtype=np.int64)
    zero = np.asarray(node.arrays["weight_zero"], dtype=np.int64)
    if node.op == "conv_transpose":
        groups = node.attributes["groups"]
        weight = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        weight = np.swapaxes(weight, 1, 2).reshape(len(zero), -1)
    return weight.reshape(len(zero), -1) - zero[:, None]


def channel_bounds(node: Node, read: TensorFormat) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest partial sum of each output channel, in any order of the terms, int64 `[out]`.

    A term lies between the products of its weight with the ends of the input's range, and may be missing (padding, or
    not yet added): hence min(0, ...) and max(0, ...).
    """
    weight = _by_output(node)
    ends = weight * (read.low - read.zero_point), weight * (read.high - read.zero_point)
    least = np.minimum(np.minimum(*ends), 0).sum(1)
    greatest = np.maximum(np.maximum(*ends), 0).sum(1)
    return least, greatest


def largest_sum(node: Node, read: TensorFormat) -> int:
    """The largest absolute value that any accumulator can have, the bias apart."""
    least, greatest = channel_bounds(node, read)
    return int(max(greatest.max(initial=0), -least.min(initial=0)))


def spare_bits(node: Node, read: TensorFormat, bias: np.ndarray, *, most: int) -> int:
    """By how many bits, `most` at the most, accumulators and biases can be shifted left and stay within 31 bits.

    Args:
        node: with weights.
        read: the format of its input.
        bias: real values in units of the accumulator, one a channel.
        most: the largest answer.
    """
    least, greatest = channel_bounds(node, read)
    size = int(np.maximum(greatest, -least).max(initial=0)) + float(np.abs(bias).max(initial=0.0)) + 1.0
    return max(0, min(most, int(np.floor(np.log2(LARGEST / 2 / size)))))


def check_accumulators(model: IntegerModel) -> None:
    """Raise unless no accumulator leaves 32 bits, with its bias, whatever the input.

    Raises:
        InputError: names the layer, the channel and the sum.
    """
    formats = {node.name: node.format for node in model.nodes}
    for node in model.nodes:
        if node.op in ACCUMULATORS:
            _check(node, formats[node.inputs[0]])


def _check(node: Node, read: TensorFormat) -> None:
    shift = node.attributes.get("accumulator_shift", 0)
    least, greatest = (bound << shift for bound in channel_bounds(node, read))
    bias = np.asarray(node.arrays["bias"], dtype=np.int64)
    size = np.maximum(greatest + np.maximum(bias, 0), -(least + np.minimum(bias, 0)))
    worst = int(size.argmax())
    if size[worst] > LARGEST:
        raise InputError(
            f"layer {node.layer or node.name!r}: output channel {worst} may reach {int(size[worst]):,} in its 32-bit "
            f"accumulator (at most {LARGEST:,}); give it fewer bits of weight or activation, or leave it out of the "
            "integer export"
        )
