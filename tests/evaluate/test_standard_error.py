"""The standard error of any metric."""

import math

import pytest
import torch

from haq.evaluate import PTQEvaluator, Scoring
from haq.evaluate.base import accuracy, negative_mse
from haq.evaluate.standard_error import jackknife
from haq.quant import QuantizedModel
from haq.zoo import Split


def test_a_group_per_sample_gives_the_standard_error_of_a_mean():
    errors = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    got = jackknife(negative_mse, errors, torch.zeros(200, 1), groups=200)
    assert got == pytest.approx(float(errors.square().std() / math.sqrt(200)), rel=1e-4)


def test_ten_groups_agree_with_the_proportion_on_average():
    """What repeated drawing of the data says, to within the jackknife's own scatter."""
    generator, estimates = torch.Generator().manual_seed(0), []
    for _ in range(100):
        hits = (torch.rand(500, generator=generator) < 0.9).long()
        estimates.append(jackknife(accuracy, torch.eye(2)[hits], torch.ones(500, dtype=torch.long)))
    assert math.sqrt(sum(e**2 for e in estimates) / 100) == pytest.approx(100 * math.sqrt(0.9 * 0.1 / 500), rel=0.1)


def test_outputs_and_targets_may_be_nested():
    outputs, targets = {"a": torch.randn(20), "b": (torch.randn(20, 3),)}, torch.randn(20)
    assert jackknife(lambda o, t: float((o["a"] - t).sum()), outputs, targets) > 0


def fails_on_a_part(outputs, targets):
    if len(outputs) < 20:
        raise ValueError("needs all")
    return 1.0


@pytest.mark.parametrize(
    ("metric", "outputs"),
    [
        (negative_mse, torch.randn(1)),
        (lambda o, t: 1.0, torch.randn(7)),
        (lambda o, t: 1.0, torch.tensor(1.0)),
        (fails_on_a_part, torch.randn(20)),
        (lambda o, t: math.nan, torch.randn(20)),
    ],
    ids=["one sample", "another count", "no dimensions", "metric fails", "metric is NaN"],
)
def test_where_it_cannot_be_told_it_is_none(metric, outputs):
    assert jackknife(metric, outputs, torch.zeros(1 if len(outputs.shape) and len(outputs) == 1 else 20)) is None


class Pixels(torch.nn.Module):
    """Hands on its input, through a layer that there has to be."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(2, 2, 1, bias=False)
        self.layer.weight.data = torch.eye(2)[:, :, None, None]

    def forward(self, x):
        return self.layer(x)


def images(generator, count=200):
    """Logits of images that are easy (90 % of the pixels right) or hard (10 %) as a whole."""
    right = torch.where(torch.rand(count, generator=generator) < 0.7, 0.9, 0.1)[:, None, None]
    hits = (torch.rand(count, 16, 16, generator=generator) < right).long()
    return torch.nn.functional.one_hot(hits, 2).movedim(-1, 1).float()


@pytest.mark.parametrize("metric", ["accuracy", "mean_iou"])
def test_errors_count_images_and_not_pixels(metric):
    """What repeated drawing of the images says; counting pixels says a fourteenth of it."""
    generator, scores, errors = torch.Generator().manual_seed(0), [], []
    targets = torch.ones(200, 16, 16, dtype=torch.long)
    model = QuantizedModel(Pixels().eval(), calibration=[(images(generator), None)])
    for _ in range(60):
        split = Split(images(generator), targets)
        measured = PTQEvaluator(model, split, scoring=Scoring(metric=metric, loss=None)).float_measurement()
        scores.append(measured.score)
        errors.append(measured.details["score_error"])
    spread = float(torch.tensor(scores).std())
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) == pytest.approx(spread, rel=0.25)
