"""How values lie in memory and how layers fill compute units: packing, alignment, counts of scales."""

from __future__ import annotations

from math import ceil, prod
from typing import Literal, NamedTuple

from haq.values.families import FLOAT32_BYTES, ceil_div
from haq.values.formats import Format
from haq.values.kinds import KINDS
from haq.values.network import LayerSpec

ZERO_POINT_BYTES = 1
Granularity = Literal["tensor", "channel", "group"]


def packed_bytes(elements: int, bits: int, *, word_bits: int | None = None) -> int:
    """Bytes of `elements` values of `bits` bits.

    Args:
        elements: how many values.
        bits: per value.
        word_bits: no value straddles a word of this size, so that floor(word_bits / bits) values share one and the rest
            of it is lost; a wider value takes whole words. Without it there are no gaps.
    """
    if word_bits is None:
        return ceil_div(elements * bits, 8)
    per_word = word_bits // bits
    words = ceil_div(elements, per_word) if per_word else elements * ceil_div(bits, word_bits)
    return ceil_div(words * word_bits, 8)


def code_bytes(fmt: Format, rows: int, columns: int, *, word_bits: int | None = None) -> int:
    """Bytes of the codes of `rows` output channels of `columns` inputs; each array of codes starts on a new byte."""
    return sum(packed_bytes(count, fmt.code_bits, word_bits=word_bits) for count in fmt.codes(rows, columns))


def weight_bytes(layer: LayerSpec, fmt: Format, *, word_bits: int | None = None, pad_rows: bool = False) -> int:
    """Bytes of a layer's packed weights; with `pad_rows` each output channel starts on a new word."""
    if not layer.params:
        return 0
    channels, columns = _matrix(layer)
    if pad_rows:
        return channels * code_bytes(fmt, 1, columns, word_bits=word_bits)
    return code_bytes(fmt, channels, columns, word_bits=word_bits)


def parameter_bytes(
    layer: LayerSpec, fmt: Format, *, granularity: Granularity, group_size: int, scheme: Literal["symmetric", "affine"]
) -> int:
    """Bytes of a layer's scales (fp32) and zero points (one byte each, for integers that are affine).

    A group lies within one output channel, and the last one may be shorter. A format that says itself what it stores
    beside its codes goes before the settings; floats have neither scale nor zero point.
    """
    if not layer.params:
        return 0
    own = fmt.parameter_bytes(*_matrix(layer))
    if own is not None:
        return own
    if fmt.group_size is not None:
        granularity, group_size = "group", fmt.group_size
    with_zero = scheme == "affine" and (fmt.is_integer or fmt.group_size is not None)
    groups = {
        "tensor": 1,
        "channel": layer.out_channels,
        "group": layer.out_channels * ceil_div(layer.params // layer.out_channels, group_size),
    }[granularity]
    return groups * (FLOAT32_BYTES + (ZERO_POINT_BYTES if with_zero else 0))


def activation_scale_bytes(fmt: Format, elements: int) -> int:
    """Bytes of the scales that lie beside `elements` activations, in formats that have one for each block of them.

    Blocks count as full, whatever the number of channels; one scale for all of a tensor is part of the program.
    """
    return fmt.parameter_bytes(1, elements) or 0 if fmt.family.is_ordered else 0


def misfit(layer: LayerSpec, fmt: Format) -> str | None:
    """Why a layer's weight cannot have a format, whatever the device; `None`: it can."""
    return fmt.misfit(*_matrix(layer))


def _matrix(layer: LayerSpec) -> tuple[int, int]:
    """Output channels, and the weights of each."""
    return layer.out_channels, prod(layer.weight_shape) // layer.out_channels


def aligned_macs(layer: LayerSpec, *, in_channels: int, out_channels: int) -> float:
    """Multiply-accumulates after padding the channels of each group to multiples of `in_channels`, `out_channels`.

    A depthwise convolution has one input channel per group by nature: only its channel count is padded.
    """

    def stretch(channels: int, granularity: int) -> float:
        return ceil(channels / granularity) * granularity / channels

    if layer.is_depthwise:
        return layer.macs * stretch(layer.out_channels, out_channels)
    inner, outer = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    return layer.macs * stretch(inner, in_channels) * stretch(outer, out_channels)


class Gemm(NamedTuple):
    """A layer as `groups` matrix products of `rows` x `depth` by `depth` x `columns`, over all calls."""

    groups: int
    rows: int
    depth: int
    columns: int


def gemm(layer: LayerSpec) -> Gemm:
    """The matrix products of a layer for one sample: im2col for convolutions, col2im for transposed ones."""
    inner, outer, window = layer.in_channels // layer.groups, layer.out_channels // layer.groups, prod(layer.kernel)
    if KINDS[layer.kind].gathers:
        return Gemm(1, layer.output_positions, 0, layer.weight_shape[1])
    if KINDS[layer.kind].transposed:
        return Gemm(layer.groups, layer.input_elements // layer.in_channels, inner, outer * window)
    return Gemm(layer.groups, layer.output_positions, inner * window, outer)
