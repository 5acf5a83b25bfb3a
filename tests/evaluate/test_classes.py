"""Which dimension holds the classes is known or asked for, in every metric and loss that needs it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from haq.evaluate.base import LOSSES, METRICS, with_class_axis
from haq.quant.classes import class_axis, known_class_axis
from haq.sensitivity.kl import divergence
from haq.values.errors import InputError

N, T, V = 6, 5, 7
BY_CLASS = ("accuracy", "agreement", "token_accuracy", "mean_iou", "negative_kl", "negative_perplexity")


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[n, tokens, vocabulary]` and labels `[n, tokens]`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, T, V, generator=generator), torch.randint(V, (N, T), generator=generator)


@pytest.mark.parametrize(
    ("outputs", "targets", "axis"),
    [
        ((4, 3), None, 1),
        ((4, 3, 8, 9), (4, 8, 9), 1),
        ((4, 8, 3), (4, 8), 2),
        ((4, 8, 9, 3), (4, 8, 9), 3),
        ((4, 8, 3), None, None),
        ((4, 8, 8), (4, 8), None),
        ((4,), (4,), None),
    ],
)
def test_labels_say_where_the_classes_are(outputs, targets, axis):
    labels = None if targets is None else torch.zeros(targets, dtype=torch.long)
    assert known_class_axis(torch.zeros(outputs), labels) == axis


def test_probabilities_say_where_the_classes_are():
    logits = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(0))
    assert known_class_axis(logits, logits.softmax(2)) == 2
    assert known_class_axis(logits, logits.softmax(1)) == 1


def test_the_user_s_word_counts_and_is_checked():
    outputs = torch.zeros(4, 8, 8)
    assert known_class_axis(outputs, given=-1) == 2
    assert class_axis(outputs, given=1, name="agreement") == 1
    with pytest.raises(InputError, match=r"evaluator\.class_axis = 3: outputs \(4, 8, 8\) have dimensions 1 to 2"):
        known_class_axis(outputs, given=3)
    with pytest.raises(InputError, match=r"evaluator\.class_axis = -3"):
        known_class_axis(outputs, given=-3)


@pytest.mark.parametrize("name", ["accuracy", "token_accuracy", "mean_iou", "negative_perplexity"])
@pytest.mark.parametrize("axis", [1, 2])
def test_scores_are_those_of_the_positions_wherever_the_classes_are(tokens, name, axis):
    logits, labels = tokens
    flat = METRICS[name](logits.reshape(-1, V), labels.reshape(-1))
    assert METRICS[name](logits.movedim(2, axis), labels) == pytest.approx(flat)


@pytest.mark.parametrize("name", ["agreement", "negative_kl", "negative_perplexity", "token_accuracy", "mean_iou"])
@pytest.mark.parametrize("axis", [1, 2])
def test_so_are_those_against_the_float_model(tokens, name, axis):
    logits, _ = tokens
    wanted = torch.randn(N, T, V, generator=torch.Generator().manual_seed(1)).softmax(-1)
    flat = METRICS[name](logits.reshape(-1, V), wanted.reshape(-1, V))
    assert METRICS[name](logits.movedim(2, axis), wanted.movedim(2, axis)) == pytest.approx(flat)


def test_losses_take_the_classes_last_as_well(tokens):
    logits, labels = tokens
    flat = F.cross_entropy(logits.reshape(-1, V), labels.reshape(-1))
    assert LOSSES["cross_entropy"](logits, labels) == pytest.approx(float(flat))
    assert LOSSES["cross_entropy"](logits.movedim(2, 1), labels) == pytest.approx(float(flat))
    soft = torch.randn(N, T, V).softmax(-1)
    flat = F.cross_entropy(logits.reshape(-1, V), soft.reshape(-1, V))
    assert LOSSES["cross_entropy"](logits, soft) == pytest.approx(float(flat))


@pytest.mark.parametrize("name", ["agreement", "token_accuracy", "mean_iou"])
def test_where_nothing_says_it_they_refuse_until_they_are_told(tokens, name):
    logits, _ = tokens
    raw = logits + 0.1
    with pytest.raises(InputError, match=rf"{name}: outputs \(6, 5, 7\) .*set evaluator\.class_axis"):
        METRICS[name](logits, raw)
    assert with_class_axis(METRICS[name], -1)(logits, raw) == 100.0


def test_as_many_positions_as_classes_are_refused_until_told(tokens):
    logits = torch.randn(N, V, V, generator=torch.Generator().manual_seed(2))
    labels = logits.argmax(2)
    with pytest.raises(InputError, match=r"set evaluator\.class_axis"):
        METRICS["accuracy"](logits, labels)
    assert with_class_axis(METRICS["accuracy"], 2)(logits, labels) == 100.0
    assert with_class_axis(METRICS["accuracy"], 1)(logits, labels) < 100.0


def test_a_bound_function_is_another_one_on_disk_and_others_stay_as_they_are():
    bound = with_class_axis(LOSSES["kl_divergence"], 2)
    assert bound.__name__ == "kl_divergence"
    assert bound.__qualname__ != LOSSES["kl_divergence"].__qualname__
    assert with_class_axis(LOSSES["mse"], 2) is LOSSES["mse"]
    assert with_class_axis(LOSSES["kl_divergence"], None) is LOSSES["kl_divergence"]


def test_sensitivity_by_kl_is_over_the_classes(tokens):
    logits, labels = tokens
    worse = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    expected = F.kl_div(worse.log_softmax(2), logits.log_softmax(2), log_target=True, reduction="sum") / (N * T)
    assert divergence(logits, worse, labels) == pytest.approx(float(expected), rel=1e-5)
    assert divergence(logits.movedim(2, 1), worse.movedim(2, 1), labels) == pytest.approx(float(expected), rel=1e-5)
    assert divergence(logits, worse, logits.softmax(2)) == pytest.approx(float(expected), rel=1e-5)


def test_mean_iou_by_hand_leaves_absent_classes_and_ignored_positions_out():
    labels = torch.tensor([[0, 0, 1, 1, -100]])
    got = torch.tensor([[0, 1, 1, 1, 2]])
    logits = F.one_hot(got, 4).float().movedim(-1, 1)
    # class 0: 1 of 2; class 1: 2 of 3; 2 stands at an ignored position only, 3 nowhere
    assert METRICS["mean_iou"](logits, labels) == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert METRICS["token_accuracy"](logits, labels) == pytest.approx(75.0)


def test_perplexity_of_uniform_logits_is_the_number_of_classes():
    assert METRICS["negative_perplexity"](torch.zeros(3, 4, V), torch.ones(3, 4, dtype=torch.long)) == pytest.approx(-V)


def test_no_target_that_is_a_class_is_an_error():
    with pytest.raises(InputError, match="no target is one of the 3 classes"):
        METRICS["token_accuracy"](torch.zeros(2, 3), torch.tensor([-100, -100]))


def test_cosine_and_sqnr_by_hand():
    targets = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    outputs = torch.tensor([[4.0, 3.0], [0.0, 1.0]])
    assert METRICS["cosine"](outputs, targets) == pytest.approx((24 / 25 + 0) / 2)
    assert METRICS["sqnr"](outputs, targets) == pytest.approx(10 * math.log10(26 / 4))
    assert METRICS["cosine"](torch.zeros(1, 2), torch.zeros(1, 2)) == 1.0
    assert METRICS["cosine"](torch.zeros(1, 2), targets[:1]) == 0.0
