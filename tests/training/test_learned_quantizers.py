"""Trainable quantizers: values against the calibrated ones, gradients against torch's ops and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from haq.quant.calibration import calibrate_weight
from haq.quant.formats.base import Quantizer
from haq.quant.formats.binary import Binary
from haq.quant.formats.integer import PerRowInteger, PerTensorInteger, integer_limits
from haq.quant.formats.ternary import Ternary
from haq.training import TrainableQuantizer
from haq.training.gradients import learned_sign
from haq.training.learned_quantizers import PACT, DoReFa, LearnedStep, StraightThrough
from haq.training.low_bit_quantizers import (
    BinaryActivation,
    BinaryWeight,
    TernaryActivation,
    TernaryWeight,
    TrainedTernaryWeight,
)
from haq.values.formats import Format

SCALE, ROWS = 0.13, 5


def activation(bits: int, scheme: str, zero_point: int = 0) -> PerTensorInteger:
    return PerTensorInteger(SCALE, zero_point, *integer_limits(bits, scheme))


def values(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Normal values, moved out of the half step behind each end, where torch's op clips later than LSQ does."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread
    levels = x / SCALE
    return torch.where((levels - levels.round()).abs() > 0.4, x + 0.2 * SCALE, x)


def weight_rows() -> tuple[Tensor, Quantizer]:
    rows = values(ROWS, 48, seed=1, spread=0.3)
    scale = torch.full((ROWS, 1), SCALE) * torch.linspace(0.8, 1.2, ROWS)[:, None]
    return rows, PerRowInteger(scale, torch.zeros(ROWS, 1), -4, 3)


def started(quantizer: TrainableQuantizer, calibrated: Quantizer, x: Tensor, *, weight: bool) -> TrainableQuantizer:
    quantizer.start(calibrated, x if weight else x[0].to("meta"))
    return quantizer


def gradients(quantizer: TrainableQuantizer, x: Tensor, upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaf = x.clone().requires_grad_()
    (quantizer(leaf) * upstream).sum().backward()
    assert leaf.grad is not None
    return leaf.grad, [p.grad for p in quantizer.parameters() if p.grad is not None]


@pytest.mark.parametrize(("scheme", "zero_point"), [("affine", 0), ("affine", 5), ("symmetric", 0)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_learned_step_has_the_gradients_of_torch_s_learnable_op_per_tensor(
    scheme: str, zero_point: int, memory_format: torch.memory_format
) -> None:
    calibrated = activation(4, scheme, zero_point)
    x = values(4, 3, 5, 5).contiguous(memory_format=memory_format)
    outside = (x / SCALE + zero_point > calibrated.quant_max) | (x / SCALE + zero_point < calibrated.quant_min)
    x = torch.where(outside, x + 0.6 * SCALE * x.sign(), x).contiguous(memory_format=memory_format)
    upstream = torch.randn_like(x)
    ours = gradients(started(LearnedStep(None), calibrated, x, weight=False), x, upstream)
    leaf, scale = x.clone().requires_grad_(), torch.tensor([SCALE], requires_grad=True)
    factor = (75 * calibrated.quant_max) ** -0.5
    y = torch._fake_quantize_learnable_per_tensor_affine(
        leaf, scale, torch.tensor([float(zero_point)]), calibrated.quant_min, calibrated.quant_max, factor
    )
    (y * upstream).sum().backward()
    torch.testing.assert_close(ours[0], leaf.grad)
    torch.testing.assert_close(ours[1][0].reshape(1), scale.grad, rtol=1e-4, atol=1e-5)


def test_learned_step_has_the_gradients_of_torch_s_learnable_op_per_channel() -> None:
    rows, calibrated = weight_rows()
    assert isinstance(calibrated, PerRowInteger)
    levels = rows / calibrated.scale
    rows = torch.where((levels > 3) | (levels < -4), rows + 0.6 * calibrated.scale * rows.sign(), rows)
    upstream = torch.randn_like(rows)
    ours = gradients(started(LearnedStep(ROWS), calibrated, rows, weight=True), rows, upstream)
    leaf, scale = rows.clone().requires_grad_(), calibrated.scale.flatten().clone().requires_grad_()
    y = torch._fake_quantize_learnable_per_channel_affine(leaf, scale, torch.zeros(ROWS), 0, -4, 3, (48 * 3) ** -0.5)
    (y * upstream).sum().backward()
    torch.testing.assert_close(ours[0], leaf.grad)
    torch.testing.assert_close(ours[1][0].flatten(), scale.grad, rtol=1e-4, atol=1e-5)


def frozen_step(low: float, high: float) -> Callable[..., Callable[[Tensor, Tensor], Tensor]]:
    """LSQ's surrogate: rounding adds what it added at the point of the gradient, whatever moves."""

    def at(x: Tensor, step: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        added = (x / step).clamp(low, high).round() - (x / step).clamp(low, high)
        return lambda x, step: ((x / step).clamp(low, high) + added) * step

    return at


def frozen_clip(ratio: float, levels: int) -> Callable[..., Callable[[Tensor, Tensor], Tensor]]:
    """PACT's: x clipped to [ratio * level, level], plus what rounding added."""

    def at(x: Tensor, level: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, level: torch.minimum(torch.maximum(x, ratio * level), level)

    return at


def frozen_signs(x: Tensor, scales: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """TTQ's, in its scales: which weights they stand for does not move."""
    threshold = 0.7 * x.abs().mean(1, keepdim=True)
    up, down = (x > threshold).double(), (x < -threshold).double()
    return lambda x, scales: up * scales[:, :1] - down * scales[:, 1:]


def numeric(function: Callable[[Tensor], Tensor], at: Tensor, upstream: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of (function * upstream).sum()."""
    result = torch.zeros_like(at)
    for index in range(at.numel()):
        moved = torch.zeros_like(at).flatten()
        moved[index] = step
        moved = moved.view_as(at)
        difference = (function(at + moved) - function(at - moved)) * upstream
        result.view(-1)[index] = difference.sum() / (2 * step)
    return result


CASES = {
    "lsq activation": (LearnedStep(None), activation(3, "affine"), frozen_step(0, 7), "step"),
    "lsq affine activation": (LearnedStep(None), activation(3, "affine", 3), frozen_step(-3, 4), "step"),
    "lsq weight": (LearnedStep(ROWS), weight_rows()[1], frozen_step(-4, 3), "step"),
    "pact": (PACT(None), activation(3, "affine"), frozen_clip(0.0, 7), "level"),
    "pact signed": (PACT(None), activation(3, "affine", 3), frozen_clip(-3 / 4, 7), "level"),
    "ternary activation": (
        TernaryActivation(),
        Ternary(torch.tensor(0.1), torch.tensor(0.3)),
        frozen_step(-1, 1),
        "step",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_differences_of_the_surrogate(name: str) -> None:
    quantizer, calibrated, surrogate, learned = CASES[name]
    x = weight_rows()[0]
    started(quantizer, calibrated, x, weight="weight" in name).double()
    x, upstream = x.double(), torch.randn(ROWS, 48, dtype=torch.float64)
    parameter = getattr(quantizer, learned).detach()
    frozen = surrogate(x, parameter)
    quantizer.zero_grad()
    on_x, (on_parameter,) = gradients(quantizer, x, upstream)
    scale = 1.0 if name.startswith("pact") else float(dict(quantizer.named_buffers())["gradient_scale"])
    expected = numeric(lambda p: frozen(x, p), parameter, upstream) * scale
    torch.testing.assert_close(on_x, numeric(lambda z: frozen(z, parameter), x, upstream), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(on_parameter, expected, rtol=1e-5, atol=1e-6)


def test_trained_ternary_scales_have_the_gradient_of_the_weights_they_stand_for() -> None:
    x, _ = weight_rows()
    quantizer = started(TrainedTernaryWeight(ROWS), Ternary(x[:, :1], x[:, :1]), x, weight=True).double()
    x, upstream = x.double(), torch.randn(ROWS, 48, dtype=torch.float64)
    scales = next(quantizer.parameters()).detach()
    on_x, (on_scales,) = gradients(quantizer, x, upstream)
    torch.testing.assert_close(on_scales, numeric(lambda s: frozen_signs(x, scales)(x, s), scales, upstream))
    threshold = 0.7 * x.abs().mean(1, keepdim=True)
    slope = torch.where(x > threshold, scales[:, :1], torch.where(x < -threshold, scales[:, 1:], torch.ones_like(x)))
    torch.testing.assert_close(on_x, upstream * slope)


def test_dorefa_weight_has_the_gradient_of_the_scaled_tanh() -> None:
    x, calibrated = weight_rows()
    quantizer = started(DoReFa(ROWS), calibrated, x, weight=True).double()
    x, upstream = x.double(), torch.randn(ROWS, 48, dtype=torch.float64)
    factor = dict(quantizer.named_buffers())["step"]
    on_x, _ = gradients(quantizer, x, upstream)
    expected = numeric(lambda z: factor * z.tanh() / z.tanh().abs().max(), x, upstream)
    torch.testing.assert_close(on_x, expected, rtol=1e-5, atol=1e-6)
    assert len(quantizer(x)[0].unique()) <= 8


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_started_quantizer_gives_the_values_of_the_calibrated_one(bits: int) -> None:
    rows = torch.randn(ROWS, 48) * 0.2
    weight = calibrate_weight(rows, Format.integer(bits), scheme="symmetric", method="balanced", percentile=99.99)
    for make in (LearnedStep, StraightThrough):
        torch.testing.assert_close(started(make(ROWS), weight, rows, weight=True)(rows), weight(rows))
    for kind in (LearnedStep, StraightThrough, PACT):
        for calibrated in (activation(bits, "affine", 1), activation(bits, "affine")):
            torch.testing.assert_close(started(kind(None), calibrated, rows, weight=False)(rows), calibrated(rows))


@pytest.mark.parametrize("quantizer", [TernaryWeight(), BinaryWeight()], ids=["twn", "xnor"])
def test_low_bit_weights_are_those_of_the_calibrated_quantizer_and_pass_the_gradient(
    quantizer: TrainableQuantizer,
) -> None:
    rows = torch.randn(ROWS, 48) * 0.2
    name = "ternary" if isinstance(quantizer, TernaryWeight) else "binary"
    calibrated = calibrate_weight(rows, Format.parse(name), scheme="symmetric", method="mse", percentile=99.99)
    torch.testing.assert_close(quantizer(rows), calibrated(rows))
    upstream = torch.randn_like(rows)
    torch.testing.assert_close(gradients(quantizer, rows, upstream)[0], upstream)


def test_binary_activation_learns_its_scale() -> None:
    x, upstream = torch.randn(ROWS, 48), torch.randn(ROWS, 48)
    quantizer = started(BinaryActivation(), Binary(torch.tensor(0.5)), x, weight=False)
    torch.testing.assert_close(quantizer(x).detach(), 0.5 * torch.where(x >= 0, 1.0, -1.0))
    on_x, (on_scale,) = gradients(quantizer, x, upstream)
    torch.testing.assert_close(on_x, upstream * (x.abs() <= 0.5))
    torch.testing.assert_close(on_scale, (upstream * x.sign()).sum() / 48**0.5)


@pytest.mark.parametrize("text", ["lsq", "pact", "ternary", "binary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activation_quantizers_keep_their_input_only(text: str, dtype: torch.dtype) -> None:
    x = torch.randn(8, 4, 6, 6, dtype=dtype, requires_grad=True)
    quantizer, calibrated = {
        "lsq": (LearnedStep(None), activation(4, "symmetric")),
        "pact": (PACT(None), activation(4, "affine")),
        "ternary": (TernaryActivation(), Ternary(torch.tensor(0.1), torch.tensor(0.3))),
        "binary": (BinaryActivation(), Binary(torch.tensor(0.5))),
    }[text]
    started(quantizer, calibrated, x.detach(), weight=False)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = quantizer(x)
    assert y.dtype == dtype
    assert {t.data_ptr() for t in saved if t.numel() > 1} == {x.data_ptr()}


def test_half_precision_activations_get_the_float_gradients() -> None:
    x = values(4, 3, 5, 5).bfloat16()
    upstream = torch.randn(4, 3, 5, 5).bfloat16()
    half = gradients(started(LearnedStep(None), activation(4, "affine"), x, weight=False), x, upstream)
    full = gradients(started(LearnedStep(None), activation(4, "affine"), x, weight=False), x.float(), upstream.float())
    torch.testing.assert_close(half[0].float(), full[0], rtol=0, atol=0)
    torch.testing.assert_close(half[1][0], full[1][0], rtol=1e-3, atol=1e-4)


def test_a_step_stays_above_zero() -> None:
    quantizer = LearnedStep(2)
    with torch.no_grad():
        quantizer.step.copy_(torch.tensor([[-0.5], [0.0]]))
    quantizer.bounded()
    assert quantizer.step[0].item() == 0.5
    assert quantizer.step[1].item() > 0


def test_a_compiler_gets_the_same_gradients_of_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        x = torch.linspace(-2.0, 2.0, 41).requires_grad_()
        scale = torch.tensor(0.75, requires_grad=True)
        result = learned_sign(x, scale, torch.tensor(0.5))
        (result * torch.arange(41.0)).sum().backward()
        found.append((result.detach(), x.grad, scale.grad))
    for own, composed in zip(*found, strict=True):
        assert torch.allclose(own, composed)
