"""Targets that the float model gives fit the loss, and the float model scores perfectly against itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from haq.evaluate import LOSSES, METRICS, PTQEvaluator, Scoring
from haq.evaluate.float_targets import float_targets, targets_kind
from haq.quant import QuantizedModel
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import DataSplits, Split

PERFECT = {
    "agreement": 100.0,
    "cosine": 1.0,
    "mean_iou": 100.0,
    "negative_kl": 0.0,
    "negative_mse": 0.0,
    "negative_perplexity": -1.0,
    "sqnr": 200.0,
    "token_accuracy": 100.0,
}


class Tokens(nn.Module):
    """`[n, tokens, features]` to logits `[n, tokens, classes]`, or with `dense` to `[n, classes, tokens]`."""

    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.inner, self.head, self.dense = nn.Linear(8, 16), nn.Linear(16, 5), dense

    def forward(self, x):
        out = self.head(torch.relu(self.inner(x)))
        return out.transpose(1, 2) if self.dense else out


def data(*shape: int) -> DataSplits:
    generator = torch.Generator().manual_seed(0)
    splits = [Split(torch.randn(n, *shape, generator=generator), torch.zeros(n)) for n in (32, 64, 48)]
    return DataSplits(*splits)


def model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "flat":
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    return Tokens(kind == "dense").eval()


def test_every_metric_but_that_of_labels_is_tried():
    assert {*PERFECT, "accuracy"} == set(METRICS)


@pytest.mark.parametrize("kind", ["flat", "dense", "tokens"])
@pytest.mark.parametrize("metric", PERFECT)
def test_the_float_model_scores_perfectly_against_itself_and_2_bits_score_less(metric, kind):
    floating, axis = model(kind), {"flat": None, "dense": 1, "tokens": -1}[kind]
    splits = data(8) if kind == "flat" else data(6, 8)
    wanted = targets_kind("float_model", loss="own:loss", metric=metric) if metric in NAMED else "probabilities"
    against = float_targets(floating, splits, batch_size=20, kind=wanted, class_axis=axis)
    loss = "mse" if wanted == "outputs" else "kl_divergence"
    quantized = QuantizedModel(floating, calibration=splits.train.batches(32))
    evaluator = PTQEvaluator(quantized, against.search, scoring=Scoring(metric=metric, loss=loss))
    measured = evaluator.float_measurement()
    assert measured.score == pytest.approx(PERFECT[metric], abs=1e-5)
    assert measured.details["loss"] == pytest.approx(0.0, abs=1e-6)
    worse = evaluator(Policy.uniform(quantized.layers, Precision.parse("w2a2")))
    assert worse.score < PERFECT[metric] - 1e-3
    assert worse.details["loss"] > 1e-4


NAMED = {"cosine", "negative_kl", "negative_mse", "negative_perplexity", "sqnr"}


@pytest.mark.parametrize(
    ("loss", "metric", "kind"),
    [
        ("kl_divergence", "agreement", "probabilities"),
        ("cross_entropy", "own:score", "probabilities"),
        ("mse", "negative_mse", "outputs"),
        ("mse", "agreement", "outputs"),
        ("own:loss", "cosine", "outputs"),
    ],
)
def test_the_loss_or_else_the_metric_says_which_targets(loss, metric, kind):
    assert targets_kind("float_model", loss=loss, metric=metric) == kind


def test_what_contradicts_itself_or_says_nothing_is_refused():
    with pytest.raises(InputError, match=r"'negative_mse' compares outputs, .*'cross_entropy' probabilities; .*'mse'"):
        targets_kind("float_model", loss="cross_entropy", metric="negative_mse")
    with pytest.raises(InputError, match=r"float_probabilities.*float_outputs"):
        targets_kind("float_model", loss="own:loss", metric="own:score")
    assert targets_kind("float_outputs", loss="own:loss", metric="own:score") == "outputs"


def test_outputs_of_three_dimensions_are_not_guessed_at():
    with pytest.raises(InputError, match=r"data\.targets = 'float_model': outputs .* set evaluator\.class_axis"):
        float_targets(model("tokens"), data(6, 8), batch_size=16)


def test_labels_tell_where_the_classes_are():
    splits = data(6, 8)
    labelled = DataSplits(
        *(Split(s.inputs, torch.zeros(len(s), 6, dtype=torch.long)) for s in (splits.train, splits.search, splits.test))
    )
    got = float_targets(model("tokens"), labelled, batch_size=16).search.targets
    assert got.sum(-1) == pytest.approx(torch.ones(64, 6))


def test_outputs_of_several_tensors_are_targets_as_they_are():
    class Two(nn.Module):
        def forward(self, x):
            return {"a": x, "b": (2 * x, x.sum(1))}

    got = float_targets(Two(), data(8), batch_size=10, kind="outputs").test.targets
    assert torch.equal(got["b"][0], 2 * got["a"])
    assert got["b"][1].shape == (48,)


def test_every_loss_is_one_of_classes_or_of_values():
    for loss in LOSSES:
        assert targets_kind("float_model", loss=loss, metric="own:score") in ("probabilities", "outputs")
