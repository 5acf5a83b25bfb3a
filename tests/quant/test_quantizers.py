"""Quantizers against torch's own operators and the papers' formulas."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from haq.quant.calibration import calibrate_weight
from haq.quant.formats.integer import PerRowInteger, PerTensorInteger, integer_limits
from haq.quant.settings import QuantizationConfig
from haq.quant.weights import WeightLayout, WeightQuantizer
from haq.values.formats import Format

BITS = (2, 3, 4, 5, 6, 7, 8, 16)
SCHEMES = ("symmetric", "affine")


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def calibrated(weight: torch.Tensor, fmt: str, module: nn.Module, **settings: object) -> WeightQuantizer:
    config = QuantizationConfig.model_validate(settings)
    form = Format.parse(fmt)
    return WeightQuantizer.calibrate(weight, form, WeightLayout.of(module, weight, config, form), config)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(BITS), st.sampled_from(SCHEMES), st.floats(1e-5, 10.0), st.integers(0, 2**16), st.data())
def test_per_tensor_integers_equal_torch_bit_for_bit(bits, scheme, scale, seed, data):
    low, high = integer_limits(bits, scheme)
    zero_point = data.draw(st.integers(low, high)) if scheme == "affine" else 0
    scale = float(torch.tensor(scale))
    x = torch.randn(257, generator=torch.Generator().manual_seed(seed)) * scale * 2.0 ** (bits - 1)
    ties = (torch.arange(-20, 20) + 0.5) * scale
    x = torch.cat([x, ties, torch.tensor([0.0, -0.0, 1e-30, -1e-30])])
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
    quantizer = PerTensorInteger(scale, zero_point, low, high)
    assert same_bits(quantizer(x), expected)
    assert torch.equal((quantizer.quantize(x) - zero_point) * scale, expected)


LAYERS = {
    "conv1d": nn.Conv1d(6, 8, 5),
    "conv2d": nn.Conv2d(6, 8, 3),
    "grouped": nn.Conv2d(6, 8, 3, groups=2),
    "depthwise": nn.Conv2d(8, 8, 3, groups=8),
    "transposed": nn.ConvTranspose2d(6, 8, 3),
    "linear": nn.Linear(30, 7),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("kind", LAYERS)
def test_per_channel_weights_equal_torch_bit_for_bit(kind, method, scheme):
    module = LAYERS[kind]
    weight = torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(3))
    for bits in BITS:
        quantizer = calibrated(weight, f"int{bits}", module, weight_scheme=scheme, weight_calibration=method)
        (rows,) = quantizer.blocks
        axis = 1 if kind == "transposed" else 0
        expected = torch.fake_quantize_per_channel_affine(
            weight, rows.scale.flatten(), rows.zero_point.flatten().int(), axis, *integer_limits(bits, scheme)
        )
        assert same_bits(quantizer(weight), expected), bits


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", LAYERS)
def test_per_tensor_weights_equal_torch_bit_for_bit(kind, scheme):
    weight = torch.randn(LAYERS[kind].weight.shape, generator=torch.Generator().manual_seed(4))
    for bits in BITS:
        quantizer = calibrated(weight, f"int{bits}", LAYERS[kind], weight_scheme=scheme, weight_granularity="tensor")
        (rows,) = quantizer.blocks
        expected = torch.fake_quantize_per_tensor_affine(
            weight, float(rows.scale), int(rows.zero_point), *integer_limits(bits, scheme)
        )
        assert same_bits(quantizer(weight), expected), bits


def test_grouped_transposed_convolution_scales_each_output_channel():
    module = nn.ConvTranspose2d(6, 8, 3, groups=2)
    weight = module.weight.detach()
    result = calibrated(weight, "int4", module, weight_calibration="minmax")(weight)
    for group in range(2):
        for channel in range(4):
            part = (slice(3 * group, 3 * group + 3), channel)
            low, high = weight[part].min(), weight[part].max()
            scale = torch.maximum(low / -8, high / 7)
            expected = torch.fake_quantize_per_tensor_affine(weight[part], float(scale), 0, -8, 7)
            assert torch.equal(result[part], expected)


@pytest.mark.parametrize("size", [1, 4, 7, 27, 100])
@pytest.mark.parametrize("kind", ["conv2d", "transposed", "linear"])
def test_groups_are_quantized_alone_and_the_remainder_is_kept(kind, size):
    module = LAYERS[kind]
    weight = module.weight.detach()
    result = calibrated(
        weight, "int3", module, weight_granularity="group", group_size=size, weight_calibration="minmax"
    )(weight)
    assert result.shape == weight.shape
    channels, quantized = (w.transpose(0, 1) if kind == "transposed" else w for w in (weight, result))
    for row, got in zip(channels.flatten(1), quantized.flatten(1), strict=True):
        for values, levels in zip(row.split(size), got.split(size), strict=True):
            scale = max(float(values.max()) / 3, float(values.min()) / -4)
            expected = torch.fake_quantize_per_tensor_affine(values, scale, 0, -4, 3)
            torch.testing.assert_close(levels, expected, rtol=1e-6, atol=1e-7)


FORMATS = ["int2", "int3", "int4", "int8", "ternary", "binary", "fp16", "bf16", "fp32", "int1"]


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_few_levels_and_idempotent(fmt, scheme, granularity):
    weight = torch.randn(8, 5, 3, 3, generator=torch.Generator().manual_seed(5))
    quantizer = calibrated(
        weight, fmt, LAYERS["conv2d"], weight_scheme=scheme, weight_granularity=granularity, group_size=20
    )
    once = quantizer(weight)
    assert torch.equal(quantizer(once), once)
    bits = Format.parse(fmt).bits
    if bits <= 8:
        for block in quantizer.layout.split(once):
            assert max(len(row.unique()) for row in block) <= min(2**bits, 3 if fmt == "ternary" else 256)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_error_shrinks_with_bits(scheme, method):
    weight = torch.randn(16, 40, generator=torch.Generator().manual_seed(6))
    module = nn.Linear(40, 16)
    errors = [
        float(
            (calibrated(weight, f"int{b}", module, weight_scheme=scheme, weight_calibration=method)(weight) - weight)
            .square()
            .sum()
        )
        for b in (2, 3, 4, 6, 8)
    ]
    assert all(more < less for less, more in itertools.pairwise(errors))


def test_ternary_is_ternary_weight_networks():
    row = torch.tensor([0.1, -0.2, 0.5, -1.0, 0.0, 0.8])
    threshold = 0.7 * 2.6 / 6
    above = [0.5, 1.0, 0.8]
    scale = sum(above) / 3
    assert threshold == pytest.approx(0.3033, abs=1e-4)
    result = calibrated(row[None], "ternary", nn.Linear(6, 1))(row[None])
    torch.testing.assert_close(result, torch.tensor([[0.0, 0.0, scale, -scale, 0.0, scale]]))


def test_binary_is_xnor_net():
    row = torch.tensor([0.1, -0.2, 0.5, -1.0, 0.0, 0.8])
    scale = 2.6 / 6
    result = calibrated(row[None], "binary", nn.Linear(6, 1))(row[None])
    torch.testing.assert_close(result, torch.tensor([[scale, -scale, scale, -scale, scale, scale]]))


def test_floats_are_rounded_to_their_type():
    weight = torch.randn(3, 7)
    assert torch.equal(calibrated(weight, "fp16", nn.Linear(7, 3))(weight), weight.half().float())
    assert torch.equal(calibrated(weight, "bf16", nn.Linear(7, 3))(weight), weight.bfloat16().float())
    assert torch.equal(calibrated(weight, "int32", nn.Linear(7, 3))(weight), weight)


def test_an_all_zero_channel_stays_zero_in_every_format():
    weight = torch.randn(3, 7)
    weight[1] = 0.0
    for fmt in FORMATS:
        for scheme in SCHEMES:
            result = calibrated(weight, fmt, nn.Linear(7, 3), weight_scheme=scheme)(weight)
            assert torch.equal(result[1].abs(), torch.zeros(7)), fmt
            assert result.isfinite().all()


def test_the_straight_through_gradient_is_torchs_own():
    x = torch.linspace(-2, 2, 41, requires_grad=True)
    y = PerTensorInteger(0.25, 3, 0, 7)(x)
    y.sum().backward()
    assert torch.equal(y.detach(), PerTensorInteger(0.25, 3, 0, 7)(x.detach()))
    assert torch.equal(x.grad, ((x >= -0.875) & (x <= 1.125)).float())


def test_full_range_is_never_worse_than_narrow_range():
    rows = torch.randn(32, 144, generator=torch.Generator().manual_seed(7))
    full = calibrate_weight(rows, Format.parse("int2"), scheme="symmetric", method="mse", percentile=99.9)
    error = (full(rows) - rows).square().sum(1)
    for scale in torch.linspace(0.3, 2.5, 45):
        narrow = PerRowInteger(scale.expand(32, 1), torch.zeros(32, 1), -1, 1)
        assert (error <= (narrow(rows) - rows).square().sum(1)).all()
