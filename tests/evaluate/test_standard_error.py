"""The standard error of any metric."""

import math

import pytest
import torch

from haq.evaluate.base import accuracy, negative_mse
from haq.evaluate.standard_error import jackknife


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
