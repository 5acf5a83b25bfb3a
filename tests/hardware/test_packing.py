from __future__ import annotations

import math

import pytest
from networks import conv, linear, transposed

from haq.hardware.packing import aligned_macs, gemm, packed_bytes, parameter_bytes, weight_bytes
from haq.values.formats import Format

INT3, INT4, FP32 = (Format.parse(name) for name in ("int3", "int4", "fp32"))


@pytest.mark.parametrize(
    ("elements", "bits", "word_bits", "expected"),
    [
        pytest.param(25, 3, None, 10, id="dense: 75 bits"),
        pytest.param(25, 3, 32, 12, id="3 bit: 10 per 32-bit word"),
        pytest.param(30, 3, 32, 12, id="3 bit: three full words"),
        pytest.param(31, 3, 32, 16, id="3 bit: one more opens a word"),
        pytest.param(5, 3, 8, 3, id="3 bit: 2 per byte"),
        pytest.param(5, 5, 8, 5, id="5 bit: a byte each"),
        pytest.param(5, 32, 8, 20, id="wider than the word"),
        pytest.param(5, 12, 8, 10, id="wider than the word, not a multiple"),
        pytest.param(0, 4, 32, 0, id="nothing"),
    ],
)
def test_packed_bytes(elements: int, bits: int, word_bits: int | None, expected: int) -> None:
    assert packed_bytes(elements, bits, word_bits=word_bits) == expected


def test_padded_rows_start_on_a_new_word() -> None:
    layer = conv("c", 3, 16, 3, 8)  # 27 weights per output channel: 3 words of 10 three-bit values
    assert weight_bytes(layer, INT3, word_bits=32, pad_rows=True) == 16 * 3 * 4
    assert weight_bytes(layer, INT3, word_bits=32) == 44 * 4  # 432 values
    assert weight_bytes(layer, INT4, pad_rows=True) == 16 * 14


def test_scales_and_zero_points() -> None:
    layer = conv("c", 16, 32, 3, 8)  # 144 weights per output channel: 3 groups of 64

    def size(granularity: str, scheme: str = "symmetric", fmt: Format = INT4) -> int:
        return parameter_bytes(layer, fmt, granularity=granularity, group_size=64, scheme=scheme)  # type: ignore[arg-type]

    assert (size("tensor"), size("channel"), size("group")) == (4, 32 * 4, 32 * 3 * 4)
    assert size("channel", "affine") == 32 * 5
    assert size("channel", "affine", Format.parse("ternary")) == 32 * 4
    assert size("group", "affine", FP32) == 0


def test_transposed_convolutions_have_scales_per_output_channel() -> None:
    layer = transposed("t", 8, 5, 2, 4)
    assert parameter_bytes(layer, INT4, granularity="channel", group_size=64, scheme="symmetric") == 5 * 4


def test_alignment_pads_channels() -> None:
    layer = conv("c", 24, 40, 3, 8)
    assert aligned_macs(layer, in_channels=1, out_channels=1) == layer.macs
    assert aligned_macs(layer, in_channels=16, out_channels=32) == pytest.approx(layer.macs * (32 / 24) * (64 / 40))


def test_alignment_pads_within_groups_but_not_the_single_channel_of_a_depthwise_group() -> None:
    grouped, depthwise = conv("g", 24, 40, 3, 8, groups=4), conv("d", 24, 24, 3, 8, groups=24)
    assert aligned_macs(grouped, in_channels=16, out_channels=16) == pytest.approx(grouped.macs * (16 / 6) * (16 / 10))
    assert aligned_macs(depthwise, in_channels=16, out_channels=32) == pytest.approx(depthwise.macs * (32 / 24))


@pytest.mark.parametrize(
    "layer",
    [
        conv("conv", 6, 8, 3, 8, stride=2),
        conv("grouped", 6, 8, 3, 8, groups=2),
        conv("depthwise", 6, 6, 5, 8, groups=6),
        conv("twice", 6, 8, 3, 8, calls=2),
        transposed("transposed", 6, 8, 2, 4),
        linear("linear", 6, 8),
        linear("rows", 6, 8, rows=5),
    ],
    ids=lambda layer: layer.name,
)
def test_the_matrix_products_hold_every_multiply_accumulate(layer) -> None:
    assert math.prod(gemm(layer)) == layer.macs
