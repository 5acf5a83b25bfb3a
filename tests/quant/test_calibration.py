"""Range estimation against small independent implementations."""

import math

import numpy as np
import pytest
import torch

from haq.quant.calibration import calibrate_activation, calibrate_weight
from haq.quant.formats.integer import integer_limits
from haq.quant.histogram import Histogram
from haq.quant.ranges import scale_and_zero_point
from haq.values.formats import Format


def values(kind: str, count: int = 40_000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(count, generator=generator)
    if kind == "relu":
        return x.relu()
    return {"normal": x, "shifted": x + 1.5, "heavy": x * x.abs() ** 1.5, "negative": -x.abs()}[kind]


def histogram(x: torch.Tensor) -> Histogram:
    seen = Histogram()
    seen.update(x)
    return seen


def activation(x: torch.Tensor, bits: int, *, method: str, scheme: str = "affine", percentile: float = 99.9):
    return calibrate_activation(histogram(x), Format.integer(bits), scheme=scheme, method=method, percentile=percentile)


def error(quantizer, x: torch.Tensor) -> float:
    return float((quantizer(x) - x).square().mean())


KINDS = ("normal", "relu", "shifted", "heavy", "negative")


def test_a_growing_histogram_equals_the_one_of_all_values_at_once():
    parts = values("heavy").split(5_000)
    growing = Histogram()
    for part in sorted(parts, key=lambda part: float(part.abs().max())):
        growing.update(part)
    centers, counts = growing.bins()
    expected, _ = np.histogram(
        torch.cat(parts).numpy(),
        bins=len(centers),
        range=(float(centers[0]) - growing.width / 2, float(centers[-1]) + growing.width / 2),
    )
    assert np.abs(counts.numpy() - expected).sum() == 0
    assert (growing.low, growing.high) == (float(torch.cat(parts).min()), float(torch.cat(parts).max()))


def test_a_large_update_is_sampled_evenly_and_keeps_its_extremes():
    x = torch.randn(64, 32, 28, 28, generator=torch.Generator().manual_seed(1))
    x[3, 2, 1, 0] = 99.0
    seen = histogram(x)
    _, counts = seen.bins()
    assert 2**16 < counts.sum() <= 2**17
    assert seen.high == 99.0
    assert seen.percentile_range(90.0)[1] == pytest.approx(1.2816, abs=0.05)


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("kind", KINDS)
def test_minmax_clips_nothing(kind, scheme):
    x = values(kind)
    quantizer = activation(x, 8, method="minmax", scheme=scheme)
    assert float((quantizer(x) - x).abs().max()) <= quantizer.scale * 1.001


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
@pytest.mark.parametrize("kind", KINDS)
def test_percentile_range_is_numpys(kind, percentile):
    x = values(kind)
    seen = histogram(x)
    low, high = seen.percentile_range(percentile)
    expected = np.percentile(x.numpy(), [100.0 - percentile, percentile], method="inverted_cdf")
    assert high == pytest.approx(max(0.0, expected[1]), abs=1.01 * seen.width)
    assert low == pytest.approx(min(0.0, expected[0]), abs=1.01 * seen.width)


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_activation_range_is_near_the_best_of_an_exhaustive_grid(kind, bits, scheme):
    x = values(kind, 8_000)
    found = error(activation(x, bits, method="mse", scheme=scheme), x)
    assert found <= error(activation(x, bits, method="minmax", scheme=scheme), x) * 1.001
    ends = [
        scale_and_zero_point(
            torch.tensor(float(x.min().clamp(max=0)) * a), torch.tensor(float(x.max().clamp(min=0)) * b), bits, scheme
        )
        for a in np.linspace(0.05, 1, 15)
        for b in np.linspace(0.05, 1, 15)
    ]
    best = min(
        float(
            (torch.fake_quantize_per_tensor_affine(x, float(s), int(z), *integer_limits(bits, scheme)) - x)
            .square()
            .mean()
        )
        for s, z in ends
    )
    assert found <= best * 1.05


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_mse_weight_scale_is_never_worse_than_minmax_and_near_the_best_scale(bits, scheme):
    rows = torch.stack([values(kind, 300) for kind in ("normal", "heavy", "shifted")])
    options = {"scheme": scheme, "percentile": 99.9}
    minmax = calibrate_weight(rows, Format.integer(bits), method="minmax", **options)
    mse = calibrate_weight(rows, Format.integer(bits), method="mse", **options)
    errors = [(quantizer(rows) - rows).square().sum(1) for quantizer in (minmax, mse)]
    assert (errors[1] <= errors[0]).all()
    for row, found in zip(range(3), errors[1], strict=True):
        best = min(
            float(
                (
                    torch.fake_quantize_per_tensor_affine(
                        rows[row],
                        float(minmax.scale[row]) * fraction,
                        int(minmax.zero_point[row]),
                        *integer_limits(bits, scheme),
                    )
                    - rows[row]
                )
                .square()
                .sum()
            )
            for fraction in np.linspace(0.03, 1.0, 400)
        )
        assert found <= best * (1.02 if bits < 8 else 1.15)


def test_balanced_weights_keep_gain_and_mean_at_little_squared_error():
    rows = torch.randn(64, 144, generator=torch.Generator().manual_seed(2)) + 0.05
    options = {"scheme": "symmetric", "percentile": 99.9}
    mse, balanced = (calibrate_weight(rows, Format.integer(2), method=m, **options)(rows) for m in ("mse", "balanced"))

    def objective(quantized, common):
        e = quantized - rows
        gain, shift = (e * rows).sum(1) ** 2 / (rows**2).sum(1), e.sum(1) ** 2 / 144
        return (e**2).sum(1) + common * (gain + shift)

    assert (objective(mse, 0) <= objective(balanced, 0)).all()
    assert objective(balanced, 0).mean() < 1.5 * objective(mse, 0).mean()
    grid = [
        torch.fake_quantize_per_tensor_affine(rows, float(scale), 0, -2, 1) for scale in torch.linspace(0.4, 3.0, 100)
    ]
    best = torch.stack([objective(quantized, 16) for quantized in grid]).amin(0)
    assert objective(balanced, 16).mean() <= best.mean() * 1.02
    gains = [float(((q * rows).sum(1) / (rows**2).sum(1) - 1).abs().mean()) for q in (mse, balanced)]
    assert gains[1] < 0.5 * gains[0]


def slow_divergence(counts: np.ndarray, kept: int, levels: int) -> float:
    """TensorRT's loop for values from 0 up: keep the first `kept` bins, quantize them to `levels` levels."""
    p = counts[:kept].copy()
    p[-1] += counts[kept:].sum()
    step = kept / (levels - 1)
    q = np.zeros(kept)
    owner = [min(levels - 1, round((i + 0.5) / step)) for i in range(kept)]
    for level in range(levels):
        members = [i for i in range(kept) if owner[i] == level]
        filled = [i for i in members if p[i] > 0]
        for i in filled:
            q[i] = sum(counts[j] for j in members) / len(filled)
    p, q = p / p.sum(), q / q.sum()
    return sum(a * math.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("bits", [3, 4])
def test_entropy_threshold_has_the_least_divergence_of_a_slow_search(bits):
    x = values("heavy", 20_000).abs()
    seen = histogram(x)
    _, counts = seen.bins()
    quantizer = activation(x, bits, method="entropy")
    chosen = round(quantizer.scale * (2**bits - 1) / seen.width)
    others = [slow_divergence(counts.numpy(), kept, 2**bits) for kept in range(100, len(counts) + 1, len(counts) // 30)]
    assert slow_divergence(counts.numpy(), chosen, 2**bits) <= min(others) * 1.02
    assert chosen < len(counts)


def test_entropy_weights_share_one_fraction_of_their_own_range():
    rows = torch.stack([values("heavy", 5_000), 3 * values("heavy", 5_000)])
    options = {"scheme": "symmetric", "percentile": 99.9}
    minmax = calibrate_weight(rows, Format.integer(4), method="minmax", **options)
    entropy = calibrate_weight(rows, Format.integer(4), method="entropy", **options)
    fractions = entropy.scale / minmax.scale
    assert float(fractions[0]) == pytest.approx(float(fractions[1]), rel=1e-4)
    assert 0.02 < float(fractions[0]) < 1.0


@pytest.mark.parametrize("fmt", ["binary", "ternary"])
def test_low_bit_activations_use_the_mean_size(fmt):
    x = values("normal")
    quantizer = calibrate_activation(histogram(x), Format.parse(fmt), scheme="affine", method="mse", percentile=99.9)
    size = float(x.abs().mean())
    expected = size if fmt == "binary" else float(x.abs()[x.abs() > 0.7 * size].mean())
    assert sorted(set(quantizer(x).abs().unique().tolist()) - {0.0}) == pytest.approx([expected], rel=1e-3)


def test_binary_after_a_relu_tells_small_from_large():
    x = values("relu")
    quantizer = calibrate_activation(
        histogram(x), Format.parse("binary"), scheme="affine", method="mse", percentile=99.9
    )
    assert len(quantizer(x).unique()) == 2
    assert error(quantizer, x) < float(x.var())


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not all values are finite"):
        histogram(torch.tensor([1.0, math.nan]))


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_an_input_that_is_always_zero_stays_zero(method):
    quantizer = activation(torch.zeros(100), 8, method=method)
    assert torch.equal(quantizer(torch.zeros(5)), torch.zeros(5))
