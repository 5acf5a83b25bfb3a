"""The post-training evaluator against scores computed by hand from the models' own outputs."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from haq.evaluate import LOSSES, METRICS, PTQEvaluator, Scoring
from haq.execute import LocalExecutor
from haq.quant import QuantizedModel, correct_bias, reestimate_batch_norm
from haq.quant.settings import QuantizationConfig
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import Split, load_digits, load_model


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def model(digits) -> QuantizedModel:
    return QuantizedModel(load_model("digits_cnn"), calibration=digits.train.head(128).batches(64))


def uniform(model: QuantizedModel, text: str) -> Policy:
    return Policy.uniform(model.layers, Precision.parse(text))


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(inputs)


def test_score_and_loss_are_those_of_the_outputs(model, digits):
    measured = PTQEvaluator(model, digits.search, scoring=Scoring(batch_size=50))(uniform(model, "w3a4"))
    outputs = logits(model, digits.search.inputs)
    correct = float((outputs.argmax(1) == digits.search.targets).double().mean())
    assert measured.ok
    assert measured.fidelity == "ptq"
    assert measured.score == pytest.approx(100 * correct)
    assert measured.details["accuracy"] == measured.score
    assert measured.details["loss"] == pytest.approx(float(F.cross_entropy(outputs, digits.search.targets)), rel=1e-5)
    error = 100 * math.sqrt(correct * (1 - correct) / len(digits.search))
    assert measured.details["score_error"] == pytest.approx(error)


def test_the_float_score_is_the_float_models(model, digits):
    evaluator = PTQEvaluator(model, digits.search)
    evaluator(uniform(model, "w2a2"))
    expected = METRICS["accuracy"](logits(load_model("digits_cnn"), digits.search.inputs), digits.search.targets)
    assert evaluator.float_score() == expected
    assert evaluator.float_measurement() is evaluator.float_measurement()


def test_evaluations_repeat_exactly_whatever_came_between(model, digits):
    evaluator = PTQEvaluator(model, digits.search, kind="bn")
    first = evaluator(uniform(model, "w2a4"))
    evaluator(uniform(model, "w8a8"))
    again = evaluator(uniform(model, "w2a4"))
    assert (again.score, again.details) == (first.score, first.details)


def test_only_the_first_samples_are_scored(model, digits):
    measured = PTQEvaluator(model, digits.search, scoring=Scoring(batch_size=16, samples=40))(uniform(model, "w2a4"))
    part = digits.search.head(40)
    assert measured.score == METRICS["accuracy"](logits(model, part.inputs), part.targets)


@pytest.mark.parametrize("where", ["kind", "settings"])
def test_batch_norm_is_reestimated_for_each_policy(where, digits):
    settings = QuantizationConfig(batch_norm="reestimate" if where == "settings" else "keep")
    model = QuantizedModel(
        load_model("digits_cnn"), calibration=digits.train.head(64).batches(64), quantization=settings
    )
    evaluator = PTQEvaluator(model, digits.search, kind="bn" if where == "kind" else "ptq")
    measured = evaluator(uniform(model, "w2a4"))
    model.apply(uniform(model, "w2a4"))
    reestimate_batch_norm(model)
    assert measured.fidelity == "bn"
    expected = F.cross_entropy(logits(model, digits.search.inputs), digits.search.targets)
    assert measured.details["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_bias_correction_follows_the_settings(digits):
    settings = QuantizationConfig(bias_correction=True)
    model = QuantizedModel(
        load_model("digits_cnn"), calibration=digits.train.head(64).batches(64), quantization=settings
    )
    measured = PTQEvaluator(model, digits.search)(uniform(model, "w2a4"))
    model.apply(uniform(model, "w2a4"))
    plain = F.cross_entropy(logits(model, digits.search.inputs), digits.search.targets)
    correct_bias(model)
    expected = F.cross_entropy(logits(model, digits.search.inputs), digits.search.targets)
    assert measured.details["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert abs(float(plain - expected)) > 1e-3


class Heads(nn.Module):
    """Two inputs by name, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, a, b):
        return {"value": self.fc(a - b), "pair": (a, b.sum())}


def test_users_outputs_reach_their_metric_whole():
    a, b, targets = torch.randn(20, 4), torch.randn(20, 4), {"wanted": torch.randn(20, 3)}
    split = Split({"a": a, "b": b}, targets)
    model = QuantizedModel(Heads().eval(), calibration=split.batches(8))
    calls = []

    def score(outputs, targets):
        calls.append(outputs)
        return -float((outputs["value"] - targets["wanted"]).abs().median())  # no mean over batches

    measured = PTQEvaluator(model, split, scoring=Scoring(metric=score, loss=None, batch_size=8))(
        uniform(model, "w4a8")
    )
    expected = logits(model, {"a": a, "b": b})
    assert len(calls) == 1
    assert measured.score == pytest.approx(-float((expected["value"] - targets["wanted"]).abs().median()))
    assert torch.equal(calls[0]["pair"][0], a)
    assert calls[0]["pair"][1].shape == (3,)
    assert measured.details == {"score": measured.score}


def test_regression_has_its_metric_and_loss():
    x, y = torch.randn(30, 4), torch.randn(30, 2)
    model = QuantizedModel(nn.Sequential(nn.Linear(4, 2)).eval(), calibration=[(x, y)])
    measured = PTQEvaluator(model, Split(x, y), scoring=Scoring(metric="negative_mse", loss="mse"))(
        uniform(model, "w8a8")
    )
    assert measured.score == pytest.approx(-float(F.mse_loss(logits(model, x), y)))
    assert measured.details["loss"] == -measured.score


def test_outputs_that_are_not_finite_are_a_failed_measurement():
    net = nn.Sequential(nn.Linear(4, 2)).eval()
    x = torch.ones(6, 4)
    model = QuantizedModel(net, calibration=[(x, None)])
    split = Split(x * float("inf"), torch.zeros(6, dtype=torch.long))
    measured = PTQEvaluator(model, split)(uniform(model, "w8afp32"))
    assert not measured.ok
    assert math.isnan(measured.score)
    assert measured.error == "the model's outputs are not finite"


def test_what_the_user_gave_is_named_in_errors(model, digits):
    def broken(outputs, targets):
        raise KeyError("boxes")

    policy = uniform(model, "w8a8")
    with pytest.raises(InputError, match=r"the metric 'broken' failed on outputs .*: 'boxes'"):
        PTQEvaluator(model, digits.search, scoring=Scoring(metric=broken))(policy)
    with pytest.raises(InputError, match="the loss 'broken' failed"):
        PTQEvaluator(model, digits.search, scoring=Scoring(loss=broken))(policy)
    with pytest.raises(
        InputError,
        match=r"unknown metric 'f1'; known: accuracy, agreement, .*token_accuracy, or give a function",
    ):
        PTQEvaluator(model, digits.search, scoring=Scoring(metric="f1"))
    with pytest.raises(InputError, match="unknown loss 'hinge'; known: cross_entropy, kl_divergence, mse"):
        PTQEvaluator(model, digits.search, scoring=Scoring(loss="hinge"))
    with pytest.raises(InputError, match="mse needs outputs and targets of one shape"):
        PTQEvaluator(model, digits.search, scoring=Scoring(metric="negative_mse"))(policy)
    with pytest.raises(InputError, match="accuracy needs outputs that are one tensor, got dict; name your own"):
        METRICS["accuracy"]({}, torch.zeros(3))
    with pytest.raises(InputError, match="missing stem"):
        PTQEvaluator(model, digits.search)(Policy({name: p for name, p in policy.items() if name != "stem"}))


@pytest.mark.parametrize("failure", [ValueError("no positives"), math.nan], ids=["raises", "nan"])
def test_what_fails_under_one_policy_only_is_that_policys_failure(model, digits, failure):
    calls = []

    def metric(outputs, targets):
        calls.append(outputs)
        if len(calls) == 2:
            if isinstance(failure, Exception):
                raise failure
            return failure
        return 1.0

    evaluator = PTQEvaluator(model, digits.search.head(20), scoring=Scoring(metric=metric))
    measured = [evaluator.float_measurement(), *(evaluator(uniform(model, text)) for text in ("w2a8", "w8a8"))]
    assert [m.ok for m in measured] == [True, False, True]
    assert "no positives" in measured[1].error or "nan" in measured[1].error


def test_data_that_does_not_fit_the_model_is_an_input_error(model, digits):
    wrong = Split(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
    with pytest.raises(InputError, match=r"the model failed on the data that it is scored on: .*channels"):
        PTQEvaluator(model, wrong).float_measurement()


@pytest.mark.parametrize(("wanted", "known"), [(True, True), (False, False)])
def test_the_standard_error_of_any_metric_on_request(model, digits, wanted, known):
    scoring = Scoring(metric=METRICS["accuracy"].__call__, standard_error=wanted)
    evaluator = PTQEvaluator(model, digits.search, scoring=scoring)
    details = evaluator.float_measurement().details
    assert ("score_error" in details) == known
    if known:
        exact = PTQEvaluator(model, digits.search).float_measurement().details["score_error"]
        assert details["score_error"] == pytest.approx(exact, rel=0.6)


def test_outputs_that_cannot_be_joined_say_what_to_do():
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x)[:, : len(x)]

    x = torch.randn(5, 4)
    model = QuantizedModel(Ragged().eval(), calibration=[(x, None)])
    with pytest.raises(InputError, match=r"cannot be joined, their shapes are \[\(2, 2\), \(3, 3\)\]; return tensors"):
        PTQEvaluator(model, Split(x, x), scoring=Scoring(batch_size=3))(uniform(model, "w8a8"))


def test_dense_predictions_count_every_pixel():
    outputs = torch.randn(4, 3, 5, 5)
    targets = outputs.argmax(1)
    targets[0, 0, :2] = (targets[0, 0, :2] + 1) % 3
    assert METRICS["accuracy"](outputs, targets) == pytest.approx(98.0)
    assert float(LOSSES["cross_entropy"](outputs, targets)) == pytest.approx(float(F.cross_entropy(outputs, targets)))


def test_the_local_executor_answers_in_order(model, digits):
    evaluator = PTQEvaluator(model, digits.search, scoring=Scoring(samples=50))
    executor = LocalExecutor(evaluator)
    policies = [uniform(model, "w8a8"), uniform(model, "w2a4")]
    for policy in policies:
        executor.submit(policy)
    done = [executor.next_completed() for _ in policies]
    assert executor.capacity == 1
    assert [policy for policy, _ in done] == policies
    assert [measured.score for _, measured in done] == [evaluator(policy).score for policy in policies]
    with pytest.raises(ValueError, match="no policy is waiting; submit one first"):
        executor.next_completed()
