"""`fisher` against exact curvature, and what it leaves out after compensation."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import Conv, formats_of, quantize, rows, seeded, two_head_loss
from torch import nn

from haq.sensitivity import METRICS
from haq.values.formats import Format
from haq.zoo import Split

INT3 = Format.integer(3)


def linear_model(targets):
    split = Split(rows(4, 400, 5), targets)
    return quantize(seeded(lambda: nn.Sequential(nn.Linear(5, 4))), split), split


def error_of(model, split):
    return split.inputs @ (model.quantized_weight("0", INT3) - model.float_weight("0")).T


def fisher(model, split, loss, *, seeds=1, **options):
    formats = formats_of(model, "int3")
    scores = [
        METRICS["fisher"](model, formats, split.batches(100), loss=loss, seed=seed, **options)[0]
        for seed in range(seeds)
    ]
    return np.mean([score["0"]["int3"] for score in scores])


def test_logits_give_the_softmax_fisher_information():
    model, split = linear_model(torch.arange(400) % 4)
    p, error = model(split.inputs).softmax(1).detach(), error_of(model, split)
    variance = (p * error.square()).sum(1) - (p * error).sum(1).square()
    assert fisher(model, split, F.cross_entropy, seeds=25) == pytest.approx(float(variance.mean()) / 2, rel=0.05)


@pytest.mark.parametrize("loss", [F.mse_loss, F.binary_cross_entropy_with_logits], ids=["mse", "bce"])
def test_losses_of_single_elements_give_their_own_curvature(loss):
    model, split = linear_model(torch.rand(400, 4, generator=torch.Generator().manual_seed(0)))
    z, error = model(split.inputs).detach(), error_of(model, split)
    second = torch.full_like(z, 2.0) if loss is F.mse_loss else z.sigmoid() * (1 - z.sigmoid())
    expected = float((second * error.square()).mean()) / 2
    assert fisher(model, split, loss, seeds=25) == pytest.approx(expected, rel=0.05)


def test_other_losses_give_the_squared_gradient_at_the_targets():
    def distance(outputs, targets):
        return (1 - F.cosine_similarity(outputs, targets)).mean()

    model, split = linear_model(rows(9, 400, 4))
    z = model(split.inputs).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(400 * distance(z, split.targets), z)
    expected = float((gradient * error_of(model, split)).sum(1).square().mean()) / 2
    assert fisher(model, split, distance) == pytest.approx(expected, rel=1e-4)


def test_a_loss_that_differentiates_once_only_gives_the_squared_gradient():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, outputs, targets):
            ctx.save_for_backward(outputs - targets)
            return (outputs - targets).square().mean()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            (difference,) = ctx.saved_tensors
            return grad * 2 * difference / difference.numel(), None

    model, split = linear_model(rows(9, 400, 4))
    gradient = 2 * (model(split.inputs).detach() - split.targets) / 4
    expected = float((gradient * error_of(model, split)).sum(1).square().mean()) / 2
    assert fisher(model, split, Once.apply) == pytest.approx(expected, rel=1e-4)


def test_outputs_of_any_type_reach_the_loss():
    class Outer(nn.Module):
        def forward(self, x):
            return SimpleNamespace(values=x)

    split = Split(rows(4, 400, 5), rows(9, 400, 4))
    model = quantize(seeded(lambda: nn.Sequential(nn.Linear(5, 4), Outer())), split)
    gradient = 2 * (model(split.inputs).values.detach() - split.targets) / 4
    expected = float((gradient * error_of(model, split)).sum(1).square().mean()) / 2
    assert fisher(model, split, lambda outputs, targets: F.mse_loss(outputs.values, targets)) == pytest.approx(
        expected, rel=1e-4
    )


def test_pixels_without_a_class_do_not_count():
    def outputs_scored(targets):
        split = Split(rows(4, 8, 3, 4, 4), targets)
        model = quantize(seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1))), split)
        return METRICS["fisher"](model, formats_of(model, "int3"), split.batches(8), loss=F.cross_entropy)[0]["0"][
            "int3"
        ]

    targets = torch.arange(128).reshape(8, 4, 4) % 4
    assert outputs_scored(torch.full_like(targets, -100)) == 0.0
    assert outputs_scored(targets) > 0.0


@pytest.mark.parametrize("settings", [{}, {"batch_norm": "fold"}], ids=["batch norm apart", "batch norm folded"])
def test_small_errors_cost_the_kl_divergence_that_is_measured(images, settings):
    model = quantize(seeded(Conv), images, **settings)
    formats = formats_of(model, "int6")
    kl = METRICS["kl"](model, formats, images.batches(96), loss=F.cross_entropy)
    scores = [METRICS["fisher"](model, formats, images.batches(96), loss=F.cross_entropy, seed=s) for s in range(30)]
    for kind in (0, 1):
        for layer in model.layers:
            mean = np.mean([score[kind][layer]["int6"] for score in scores])
            assert mean == pytest.approx(kl[kind][layer]["int6"], rel=0.1)


def test_what_batch_norm_makes_up_for_is_left_out(images):
    class Scale(nn.Module):
        """One weight per channel: with one scale for all, quantization only changes the channels' gains."""

        def __init__(self):
            super().__init__()
            self.gain = nn.Conv2d(2, 2, 1, groups=2, bias=False)
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x):
            return self.norm(self.gain(x)).square().mean((2, 3))

    def build():
        net = Scale()
        net.gain.weight.data = torch.tensor([0.9, 0.6]).reshape(2, 1, 1, 1)
        return net

    split = Split(images.inputs, images.targets % 2)
    model = quantize(seeded(build), split, weight_granularity="tensor")
    apart, together = (
        METRICS["fisher"](model, formats_of(model, "int2"), split.batches(96), loss=F.cross_entropy, compensation=what)[
            0
        ]
        for what in ("none", "batch_norm")
    )
    assert together["gain"]["int2"] < 1e-6 * apart["gain"]["int2"]


def test_what_bias_correction_makes_up_for_is_left_out():
    split = Split(torch.full((64, 3), 0.7), torch.arange(64) % 4)
    model = quantize(seeded(lambda: nn.Sequential(nn.Linear(3, 4))), split, bias_correction=True)
    formats = formats_of(model, "int2")
    corrected = METRICS["fisher"](model, formats, split.batches(64), loss=F.cross_entropy)[0]["0"]["int2"]
    bare = METRICS["fisher"](model, formats, split.batches(64), loss=F.cross_entropy, compensation="none")[0]["0"][
        "int2"
    ]
    assert bare > 1e-4
    assert corrected < 1e-6 * bare


def test_several_outputs_and_a_layer_called_twice(two_heads, vectors):
    scores = [
        METRICS["fisher"](two_heads, formats_of(two_heads, "int5"), vectors.batches(64), loss=two_head_loss, seed=seed)
        for seed in range(30)
    ]
    with torch.no_grad():
        reference = two_heads(vectors.inputs)

    def squared(outputs):
        place = (outputs["place"] - reference["place"]).square().mean()
        return float(place + 0.5 * (outputs["size"] - reference["size"]).square().mean())

    net = copy.deepcopy(two_heads.module)
    net.body.weight = nn.Parameter(two_heads.quantized_weight("body", Format.integer(5)))
    with torch.no_grad():
        expected = squared(net(vectors.inputs))
    assert np.mean([score[0]["body"]["int5"] for score in scores]) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(
    ("settings", "compensation"),
    [({"batch_norm": "reestimate"}, "batch_norm"), ({"bias_correction": True}, "bias"), ({}, "none")],
    ids=["batch norm", "bias", "none"],
)
def test_what_the_settings_will_make_up_for_is_left_out_unasked(settings, compensation):
    split = Split(rows(1, 96, 2, 5, 5), torch.arange(96) % 4)
    model = quantize(seeded(Conv), split, **settings)

    def score(**options):
        found = METRICS["fisher"](model, formats_of(model, "int2"), split.batches(32), loss=F.cross_entropy, **options)
        return found[0]["conv"]["int2"]

    others = {"none", "bias", "batch_norm"} - {compensation}
    assert score() == score(compensation=compensation)
    assert all(score() != score(compensation=other) for other in others)


def test_bias_correction_of_a_linear_layer_over_positions_is_by_feature():
    """One vector at all samples and positions: its error is one shift per feature, which the bias takes away."""
    inputs = rows(5, 1, 1, 6).expand(40, 3, 6).contiguous()
    split = Split(inputs, rows(6, 40, 3, 4))
    model = quantize(seeded(lambda: nn.Sequential(nn.Linear(6, 4))), split)

    def score(compensation):
        formats = formats_of(model, "int2")
        weights, _ = METRICS["fisher"](model, formats, split.batches(20), loss=F.mse_loss, compensation=compensation)
        return weights["0"]["int2"]

    assert score("bias") < 1e-9 * score("none")
