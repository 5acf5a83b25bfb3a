"""Ranges of single rows and small histograms, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from haq.quant import QuantizedModel, correct_bias
from haq.quant.calibration import calibrate_activation, calibrate_weight
from haq.quant.histogram import Histogram
from haq.quant.ranges import clipping_divergence
from haq.quant.settings import QuantizationConfig
from haq.values.formats import Format, Precision
from haq.values.policy import Policy


def histogram(*values: float) -> Histogram:
    seen = Histogram()
    seen.update(torch.tensor(values))
    return seen


def weight(rows: torch.Tensor, fmt: str, *, method: str, scheme: str = "affine", percentile: float = 99.9):
    return calibrate_weight(rows, Format.parse(fmt), scheme=scheme, method=method, percentile=percentile)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["above", "below"])
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "balanced", "entropy"])
def test_rows_on_one_side_of_zero_hold_zero_and_their_values(method, sign):
    rows = sign * torch.linspace(2.0, 3.0, 64).repeat(2, 1)
    quantizer = weight(rows, "int8", method=method, percentile=100.0)
    assert torch.equal(quantizer(torch.zeros(2, 1)), torch.zeros(2, 1))
    assert float((quantizer(rows) - rows).abs().max()) < 3.0 / 255


@pytest.mark.parametrize("percentile", [90.0, 99.0])
def test_a_percentile_cuts_both_ends_of_weights(percentile):
    rows = torch.cat([torch.linspace(-1.0, 2.0, 1000), torch.tensor([-50.0, 80.0])])[None]
    quantizer = weight(rows, "int8", method="percentile", percentile=percentile)
    ordered = rows.flatten().sort().values
    rank = math.ceil(percentile / 100 * ordered.numel())
    step = float(quantizer.scale)
    assert float(quantizer(rows).max()) == pytest.approx(float(ordered[rank - 1]), abs=step)
    assert float(quantizer(rows).min()) == pytest.approx(float(ordered[-rank]), abs=step)


@pytest.mark.parametrize("percentile", [90.0, 99.0])
def test_a_percentile_cuts_activations(percentile):
    values = torch.linspace(0.0, 1.0, 1001)
    quantizer = calibrate_activation(
        histogram(*values.tolist()), Format.integer(8), scheme="affine", method="percentile", percentile=percentile
    )
    assert float(quantizer(values).max()) == pytest.approx(percentile / 100, abs=0.01)


def test_entropy_clips_weights_the_more_the_fewer_bits_they_have():
    rows = torch.randn(4, 4000, generator=torch.Generator().manual_seed(0)) ** 3
    ranges = {bits: float(weight(rows, f"int{bits}", method="entropy")(rows).max()) for bits in (3, 8)}
    assert ranges[3] < 0.8 * ranges[8]


def test_what_is_clipped_counts_in_the_end_bins():
    counts = torch.tensor([4.0, 0.0, 6.0, 10.0], dtype=torch.float64)
    inside, levels = torch.tensor([False, True, True, True]), torch.tensor([0, 0, 1, 1])
    expected = 0.2 * math.log(0.2 / 1e-12) + 0.3 * math.log(0.3 / 0.5)
    assert clipping_divergence(counts, inside, levels) == pytest.approx(expected, rel=1e-9)


def test_exact_zeros_count_in_the_mean_size_of_low_bit_activations():
    seen = histogram(-1.0, 0.0, 0.0, 0.0, 3.0)
    binary = calibrate_activation(seen, Format.parse("binary"), scheme="affine", method="mse", percentile=99.9)
    assert float(binary.scale) == pytest.approx(0.8, abs=2 * seen.width)
    ternary = calibrate_activation(seen, Format.parse("ternary"), scheme="affine", method="mse", percentile=99.9)
    assert float(ternary.threshold) == pytest.approx(0.7 * 0.8, abs=2 * seen.width)
    assert float(ternary.scale) == pytest.approx(2.0, abs=2 * seen.width)


def test_low_bit_weights_have_the_threshold_and_scale_of_their_own_row():
    rows = torch.tensor([[1.0, -1.0, 0.1, 0.1], [40.0, -20.0, 30.0, 10.0]])
    ternary = weight(rows, "ternary", method="mse")
    assert ternary.threshold.flatten().tolist() == pytest.approx([0.7 * 0.55, 0.7 * 25.0])
    assert ternary.scale.flatten().tolist() == pytest.approx([1.0, 30.0])
    assert ternary(rows).tolist() == [[1.0, -1.0, 0.0, 0.0], [30.0, -30.0, 30.0, 0.0]]
    signs = torch.tensor([[1.0, -1.0, 1.0, 1.0], [1.0, -1.0, 1.0, 1.0]])
    assert torch.allclose(weight(rows, "binary", method="mse")(rows), signs * torch.tensor([[0.55], [25.0]]))


def test_affine_weights_are_searched_over_zero_points_too():
    rows = torch.randn(200, 9, generator=torch.Generator().manual_seed(3))
    found = (weight(rows, "int2", method="mse")(rows) - rows).square().sum(1)
    best = torch.full((200,), math.inf)
    for zero in range(4):
        for scale in torch.linspace(0.05, 3.0, 400):
            levels = ((rows / scale).round() + zero).clamp(0, 3).sub(zero) * scale
            best = torch.minimum(best, (levels - rows).square().sum(1))
    assert float(found.sum()) < 1.006 * float(best.sum())


class Positions(nn.Module):
    """A linear layer over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def test_bias_correction_of_a_linear_layer_over_positions_is_by_feature():
    torch.manual_seed(0)
    net = Positions().eval()
    inputs = torch.rand(32, 5, 6) * torch.arange(1.0, 6.0)[None, :, None]
    model = QuantizedModel(net, quantization=QuantizationConfig(bias_correction=True), calibration=[(inputs, inputs)])
    wanted = net(inputs).mean((0, 1)).detach()
    model.apply(Policy({"fc": Precision.parse("w2a8")}))
    before = (model(inputs).mean((0, 1)) - wanted).abs().max()
    correct_bias(model)
    assert model.policy == Policy({"fc": Precision.parse("w2a8")})
    assert float((model(inputs).mean((0, 1)) - wanted).abs().max()) < 1e-5 < float(before)


def test_folding_counts_the_epsilon_of_batch_norm():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, eps=0.5)).eval()
    inputs = torch.randn(32, 6)
    folded = QuantizedModel(net, quantization=QuantizationConfig(batch_norm="fold"), calibration=[(inputs, inputs)])
    folded.apply(Policy({"0": Precision.parse("w16a16")}))
    assert torch.allclose(folded(inputs), net(inputs), atol=1e-3)


def test_the_settings_reach_the_weights():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(400, 3)).eval()
    inputs = torch.randn(8, 400)
    settings = {"weight_scheme": "affine", "weight_calibration": "percentile", "percentile": 80.0}
    model = QuantizedModel(net, quantization=QuantizationConfig(**settings), calibration=[(inputs, inputs)])
    own = net[0].weight.detach()
    expected = weight(own, "int4", method="percentile", percentile=80.0)(own)
    assert torch.equal(model.quantized_weight("0", Format.integer(4)), expected)


class Twice(nn.Module):
    """`a` reads x and then y, `b` reads x."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(self.a(x)) + self.b(x)


def test_a_layer_that_reads_other_tensors_too_leads_nobody():
    inputs = torch.randn(8, 4)
    model = QuantizedModel(Twice().eval(), calibration=[(inputs, inputs)])
    assert model.input_leaders == {"a": "a", "b": "b"}
