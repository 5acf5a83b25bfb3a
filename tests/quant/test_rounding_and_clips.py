"""Rounding modes by hand and on average, OCTAV against fine grids and its own equation, moving averages by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import haq
from haq import InputError, Policy, Precision, QuantizedModel
from haq.experiment.checks import check_quantization
from haq.export import export
from haq.quant import resolve
from haq.quant.calibration import calibrate_activation, calibrate_weight
from haq.quant.histogram import Histogram
from haq.quant.octav import optimal_clip
from haq.quant.settings import QuantizationConfig
from haq.training import TrainableModel
from haq.values.formats import Format


def sample(name: str, count: int = 100_000) -> Tensor:
    torch.manual_seed(0)
    kind = {"normal": torch.distributions.Normal, "laplace": torch.distributions.Laplace}[name]
    return kind(0.0, 1.0).sample((1, count))


def weight(rows: Tensor, bits: int, method: str = "minmax", scheme: str = "symmetric", **options):
    return calibrate_weight(rows, Format.integer(bits), scheme=scheme, method=method, percentile=99.9, **options)


# --- rounding


@pytest.mark.parametrize(
    ("rounding", "codes"),
    [
        ("nearest", [7, -2, -2, 0, 0, 2, 2]),
        ("floor", [7, -3, -2, -1, 0, 1, 2]),
        ("ceil", [7, -2, -1, 0, 1, 2, 3]),
    ],
)
def test_rounding_by_hand(rounding: str, codes: list[int]) -> None:
    """A scale of 1 (the largest is 7): ties go to the even, down, up."""
    rows = torch.tensor([[7.0, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5]])
    quantizer = weight(rows, 4, rounding=rounding)
    assert quantizer.quantize(rows).tolist() == [codes]
    assert quantizer(rows).tolist() == [[float(code) for code in codes]]
    leaf = rows.clone().requires_grad_()
    got = quantizer(leaf)
    got.sum().backward()
    assert got.tolist() == [[float(code) for code in codes]]
    assert leaf.grad.tolist() == [[1.0] * 7]


def test_stochastic_rounding_is_right_on_average_and_by_its_seed() -> None:
    rows = torch.full((1, 20_000), 0.3)
    rows[0, 0] = 7.0
    one = weight(rows, 4, rounding="stochastic", seed=1)
    again, other = (weight(rows, 4, rounding="stochastic", seed=seed) for seed in (1, 2))
    assert torch.equal(one(rows), again(rows))
    assert not torch.equal(one(rows), other(rows))
    rest = one(rows)[0, 1:]
    assert set(rest.unique().tolist()) == {0.0, 1.0}
    assert float(rest.mean()) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 20_000) ** 0.5)
    assert float(rest.var()) == pytest.approx(0.3 * 0.7, rel=0.03)  # p (1 - p) of a step


@pytest.mark.parametrize("rounding", ["floor", "ceil", "stochastic"])
def test_a_file_holds_what_was_rounded(tmp_path: Path, rounding: str) -> None:
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(20, 6)), torch.randn(9, 20)
    settings = QuantizationConfig(weight_rounding=rounding)
    wrapped = QuantizedModel(model, quantization=settings, calibration=[(x, None)])
    wrapped.apply(Policy({"0": Precision.parse("w4a8")}))
    export(wrapped, model, tmp_path / "m", inputs=None, format="torch")
    plain = QuantizedModel(model, calibration=[(x, None)]).quantized_weight("0", Format.integer(4))
    held = wrapped.quantized_weight("0", Format.integer(4))
    if rounding != "stochastic":
        sign = -1 if rounding == "floor" else 1
        assert bool((sign * (held - plain) >= -1e-6).all())
    assert not torch.equal(held, plain)
    with torch.no_grad():
        assert torch.equal(haq.load_quantized(model, tmp_path / "m")(x), wrapped(x))
    with pytest.raises(InputError, match=f"weight_rounding = '{rounding}': fine-tuning rounds to the nearest"):
        TrainableModel(model, wrapped)


# --- clips


@pytest.mark.parametrize("name", ["normal", "laplace"])
@pytest.mark.parametrize(("bits", "slack"), [(2, 1.03), (3, 1.01), (4, 1.01), (6, 1.01), (8, 1.01)])
def test_octav_is_as_good_as_a_fine_grid_of_scales(name: str, bits: int, slack: float) -> None:
    rows = sample(name)
    found = weight(rows, bits, "octav")
    steps = float(found.scale) * torch.linspace(0.5, 1.6, 111)

    def error(step: float) -> float:
        return float(
            ((rows / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step - rows).square().mean()
        )

    assert float((found(rows) - rows).square().mean()) <= slack * min(error(float(step)) for step in steps)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_octav_minimises_its_equation(bits: int, signed: bool) -> None:
    """Noise of a step of 2 s / 2^B (s / 2^B of data without a sign) inside, the distance to s outside.

    Newton's iteration leaves out how the share inside changes with s: hence a thousandth.
    """
    sizes = sample("normal").abs()
    clip = float(optimal_clip(sizes, torch.ones_like(sizes), bits, signed=signed))
    step = (2 if signed else 1) / 2**bits

    def expected(s: float) -> float:
        inside = float((sizes <= s).float().mean())
        return (step * s) ** 2 / 12 * inside + float((sizes - s).clamp(min=0).square().mean())

    grid = [clip * (1 + k / 1000) for k in range(-100, 101)]
    assert expected(clip) <= min(map(expected, grid)) * (1 + 1e-3)


def test_octav_takes_all_where_nothing_is_worth_clipping() -> None:
    rows = torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    got = weight(rows, 8, "octav")(rows)
    torch.testing.assert_close(got, rows, rtol=0.01, atol=0)


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("one_sided", [True, False])
def test_octav_of_activations_is_near_the_searched_range(scheme: str, one_sided: bool) -> None:
    x = sample("laplace").relu() if one_sided else sample("laplace")
    seen = Histogram()
    seen.update(x)
    errors = {}
    for method in ("octav", "mse", "minmax"):
        quantizer = calibrate_activation(seen, Format.integer(4), scheme=scheme, method=method, percentile=99.9)
        errors[method] = float((quantizer(x) - x).square().mean())
    assert errors["octav"] <= 1.05 * errors["mse"] < 0.5 * errors["minmax"]


def test_moving_averages_by_hand() -> None:
    seen = Histogram()
    for high in (1.0, 3.0, 9.0):
        seen.update(torch.tensor([-0.5, 0.2, high]))
    quantizer = calibrate_activation(seen, Format.integer(8), scheme="affine", method="ema", percentile=99.9, decay=0.5)
    high = 0.5 * (0.5 * 1.0 + 0.5 * 3.0) + 0.5 * 9.0
    assert quantizer.scale == pytest.approx((high + 0.5) / 255, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounding_seed": 3}, "quantization.rounding_seed: is for weight_rounding = 'stochastic', which is 'nearest'"),
        ({"ema_decay": 0.5}, "quantization.ema_decay: is for activation_calibration = 'ema', which is 'mse'"),
    ],
)
def test_settings_that_nothing_reads_are_refused(settings: dict[str, float], message: str) -> None:
    given = QuantizationConfig(**settings)
    with pytest.raises(InputError, match=message):
        check_quantization(given, resolve(given))
