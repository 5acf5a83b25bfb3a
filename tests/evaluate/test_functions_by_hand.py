"""Metrics and losses on a few numbers, worked out by hand: signs, directions, means."""

import math

import pytest
import torch

from haq.evaluate import LOSSES, METRICS

LOGITS = torch.tensor([[math.log(0.8), math.log(0.2)], [math.log(0.5), math.log(0.5)]])
WANTED = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
DIVERGENCE = (0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)) / 2


def test_kl_is_from_the_targets_to_the_outputs_and_its_negative_a_score():
    assert float(LOSSES["kl_divergence"](LOGITS, WANTED)) == pytest.approx(DIVERGENCE, rel=1e-6)
    assert METRICS["negative_kl"](LOGITS, WANTED) == pytest.approx(-DIVERGENCE, rel=1e-6)


def test_squared_errors_are_a_mean_and_their_negative_a_score():
    outputs, targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2)
    assert float(LOSSES["mse"](outputs, targets)) == 7.5
    assert METRICS["negative_mse"](outputs, targets) == -7.5


def test_accuracy_and_agreement_are_per_cent():
    outputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert METRICS["accuracy"](outputs, torch.tensor([0, 1, 1, 0])) == 75.0
    wanted = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    assert METRICS["agreement"](outputs, wanted) == 50.0


def test_cross_entropy_is_in_nats():
    assert float(LOSSES["cross_entropy"](LOGITS, torch.tensor([0, 1]))) == pytest.approx(
        -(math.log(0.8) + math.log(0.5)) / 2
    )
