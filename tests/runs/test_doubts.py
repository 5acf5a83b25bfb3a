"""Warnings that a result's own numbers call for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from haq import Measurement, Policy, Precision
from haq.evaluate import PTQEvaluator, Scoring
from haq.evaluate.chance import chance_score
from haq.quant import QuantizedModel
from haq.runs.doubts import float_doubts, split_doubts
from haq.values.trial import Trial
from haq.zoo import Split


def evaluator(logits: torch.Tensor, labels: torch.Tensor, metric: str = "accuracy", loss: str = "cross_entropy"):
    layer = nn.Linear(logits.shape[1], logits.shape[1], bias=False)
    layer.weight.data = torch.eye(logits.shape[1])
    model = QuantizedModel(nn.Sequential(layer), calibration=[(logits[:4], None)])
    return PTQEvaluator(model, Split(logits, labels), scoring=Scoring(metric=metric, loss=loss))


def test_a_float_model_at_chance_level_is_doubted_and_a_better_one_is_not():
    labels = torch.arange(500) % 10
    guesses = torch.randn(500, 10, generator=torch.Generator().manual_seed(0))
    (doubt,) = float_doubts(evaluator(guesses, labels))
    assert "chance level (the same answer for every input scores 10)" in doubt
    assert "500 samples" in doubt
    knowing = torch.nn.functional.one_hot(torch.where(torch.arange(500) < 250, labels, 0), 10).float()
    assert not float_doubts(evaluator(knowing, labels))


def test_a_regression_that_predicts_no_better_than_the_mean_is_doubted():
    values = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    assert float_doubts(evaluator(torch.zeros(300, 2) + 0.5, values, "negative_mse", "mse"))
    assert not float_doubts(evaluator(0.9 * values, values, "negative_mse", "mse"))


@pytest.mark.parametrize(
    ("metric", "targets", "score"),
    [
        ("accuracy", torch.tensor([0, 0, 0, 1]), 75.0),
        ("token_accuracy", torch.tensor([[0, 0, 1, -100]]), 200 / 3),
        ("negative_perplexity", torch.arange(8).repeat(5), -8.0),
        ("negative_mse", torch.tensor([[0.0], [2.0]]), -1.0),
        ("agreement", torch.rand(4, 3), None),
        ("accuracy", (torch.zeros(3), torch.zeros(3)), None),
    ],
)
def test_chance_by_hand(metric, targets, score):
    assert chance_score(metric, targets) == (None if score is None else pytest.approx(score))


def trial(number: int, precision: str, score: float, error: float | None, source: str = "ilp") -> Trial:
    details = {} if error is None else {"score_error": error}
    policy = Policy({"a": Precision.parse(precision)})
    return Trial(number, source, policy, {}, Measurement(score, "ptq", 0.1, details))


def test_a_search_split_that_tells_nothing_apart_is_doubted():
    answer = trial(0, "w4a4", 90.0, 2.0)
    near, far = trial(1, "w2a2", 88.0, 2.0, "greedy"), trial(2, "w8a8", 70.0, 2.0, "uniform")
    (doubt,) = split_doubts(answer, [near, None], samples=50)
    assert "the search split (50 samples) is too small" in doubt
    assert "+2 against greedy, with noise of ±5.66" in doubt
    assert not split_doubts(answer, [near, far], samples=50)
    assert not split_doubts(answer, [answer, None], samples=50)
    assert not split_doubts(answer, [trial(1, "w2a2", 88.0, None)], samples=50)
