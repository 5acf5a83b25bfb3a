"""The fine-tuning evaluator on a small trained network: what it gains, what it repeats, what it leaves alone."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haq.evaluate import PTQEvaluator, QATEvaluator, Scoring
from haq.experiment.config import load_experiment
from haq.experiment.experiment import Experiment
from haq.problem.space import SearchSpace
from haq.quant import QuantizedModel
from haq.training import FineTuner
from haq.training.distillation import DISTILLATIONS
from haq.training.settings import QATConfig
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import DataSplits, Split, load_digits, load_model

SPACE = ("w2a2", "w4a4", "w8a8")


@pytest.fixture(scope="module")
def digits() -> DataSplits:
    return load_digits()


@pytest.fixture(scope="module")
def floating() -> nn.Module:
    return load_model("digits_cnn")


@pytest.fixture(scope="module")
def quantized(digits: DataSplits, floating: nn.Module) -> QuantizedModel:
    return QuantizedModel(floating, calibration=digits.train.head(128).batches(64))


def uniform(model: QuantizedModel, text: str) -> Policy:
    return Policy.uniform(model.layers, Precision.parse(text))


def evaluator(
    floating: nn.Module, quantized: QuantizedModel, digits: DataSplits, *, kind: str = "qat", **settings: Any
) -> QATEvaluator:
    choices = tuple(Precision.parse(text) for text in SPACE)
    tuner = FineTuner(
        floating,
        quantized,
        digits.train,
        settings=QATConfig(**{"steps": 12, "batch_size": 64, **settings}),
        loss=F.cross_entropy,
        space=SearchSpace(dict.fromkeys(quantized.layers, choices)),
    )
    return QATEvaluator(tuner, quantized, digits.search, kind="shared" if kind == "shared" else "qat")


def test_fine_tuning_wins_back_what_low_bits_lose_and_leaves_the_float_model_alone(digits, floating, quantized):
    before = copy.deepcopy(floating.state_dict())
    policy = uniform(quantized, "w2a2")
    plain = PTQEvaluator(quantized, digits.search, kind="bn")(policy)
    tuned = evaluator(floating, quantized, digits, steps=40)(policy)
    assert tuned.fidelity == "qat"
    assert tuned.score > plain.score + 5
    assert tuned.details["loss"] < plain.details["loss"]
    assert all(torch.equal(value, before[name]) for name, value in floating.state_dict().items())


@pytest.mark.parametrize(("kind", "start"), [("qat", "calibration"), ("qat", "shared"), ("shared", "calibration")])
def test_a_measurement_depends_on_the_policy_only_not_on_what_was_measured_before(
    digits, floating, quantized, kind, start
):
    settings = {"start": start, "shared_epochs": 0.5, "steps": 5}
    low, high = uniform(quantized, "w2a2"), uniform(quantized, "w4a8")
    one, other = (evaluator(floating, quantized, digits, kind=kind, **settings) for _ in range(2))
    first = [one(low).details, one(high).details, one(low).details]
    second = [other(high).details, other(low).details]
    assert first[0] == first[2] == second[1]
    assert first[1] == second[0]


def test_joint_training_serves_low_bits_without_training_each(digits, floating, quantized):
    policy = uniform(quantized, "w2a2")
    plain = PTQEvaluator(quantized, digits.search, kind="bn")(policy)
    shared = evaluator(floating, quantized, digits, kind="shared", shared_epochs=3)(policy)
    assert shared.fidelity == "shared"
    assert shared.score > plain.score


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("quantizer", ["lsq", "pact", "dorefa", "ste"])
def test_every_quantizer_and_optimizer_lowers_the_loss(digits, floating, quantized, quantizer, optimizer):
    policy = Policy({**uniform(quantized, "w3a3"), "stem": Precision.parse("wternarya4")})
    settings = {"quantizer": quantizer, "optimizer": optimizer, "learning_rate": 1e-3, "ternary": "ttq"}
    none = evaluator(floating, quantized, digits, **settings, steps=1)(policy)
    some = evaluator(floating, quantized, digits, **settings, steps=30)(policy)
    assert some.details["loss"] < none.details["loss"]


@pytest.mark.parametrize("name", ["kl", "mse"])
def test_the_teacher_runs_once_over_the_data_whatever_is_trained(digits, floating, quantized, name):
    passes: list[int] = []
    handle = quantized.module.register_forward_hook(lambda *_: passes.append(1))
    tuned = evaluator(floating, quantized, digits, distillation=name, samples=256, steps=6)
    assert len(passes) == 256 // 64
    for text in ("w2a2", "w4a4"):
        assert tuned(uniform(quantized, text)).ok
    assert len(passes) == 256 // 64
    handle.remove()


def test_distillation_is_zero_at_the_teacher_and_the_divergence_elsewhere():
    ours, theirs = torch.randn(6, 4), torch.randn(6, 4)
    p, q = (theirs / 2).softmax(1), (ours / 2).softmax(1)
    assert float(DISTILLATIONS["kl"](theirs, theirs, 2.0)) == pytest.approx(0, abs=1e-6)
    assert float(DISTILLATIONS["kl"](ours, theirs, 2.0)) == pytest.approx(4 * float((p * (p / q).log()).sum(1).mean()))
    both = {"a": ours, "b": (theirs,)}
    moved = {"a": ours + 1, "b": (theirs + 3,)}
    assert float(DISTILLATIONS["mse"](both, moved, 1.0)) == pytest.approx((1 + 9) / 2, rel=1e-5)


class Regression(nn.Module):
    """Two outputs from two inputs, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1))
        self.mean, self.spread = nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        z = self.body(torch.cat([x, y], 1))
        return {"mean": self.mean(z), "spread": self.spread(z)}


def regression() -> tuple[Regression, Split]:
    torch.manual_seed(0)
    x, y = torch.randn(96, 4), torch.randn(96, 2)
    return Regression().eval(), Split((x, y), {"mean": x.sum(1, keepdim=True), "spread": y.abs().sum(1, keepdim=True)})


def both(outputs: Any, targets: Any) -> Tensor:
    return sum(((outputs[key] - targets[key]) ** 2).mean() for key in ("mean", "spread"))


def test_regression_with_several_inputs_and_outputs_and_an_own_training_step():
    model, data = regression()
    wrapped = QuantizedModel(model, calibration=data.batches(32))
    scoring = Scoring(metric=lambda o, t: -float(both(o, t)), loss=None)
    seen: list[int] = []

    def own_step(network: Any, inputs: Any, targets: Any) -> Tensor:
        seen.append(len(inputs[0]))
        return both(network(inputs), targets)

    def measured(**options: Any) -> float:
        settings = QATConfig(steps=40, batch_size=32, learning_rate=0.02)
        tuner = FineTuner(model, wrapped, data, settings=settings, loss=both, **options)
        return QATEvaluator(tuner, wrapped, data, scoring=scoring)(uniform(wrapped, "w4a4")).score

    plain = PTQEvaluator(wrapped, data, scoring=scoring)(uniform(wrapped, "w4a4"))
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    by_loss = measured()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert by_loss > plain.score
    assert measured(training_step=own_step) == by_loss
    assert seen == [32] * 40


def test_a_loss_that_is_not_finite_is_a_failed_measurement_with_its_reason(digits, floating, quantized):
    measured = evaluator(floating, quantized, digits, learning_rate=1e30)(uniform(quantized, "w4a4"))
    assert not measured.ok
    assert math.isnan(measured.score)
    assert "the loss was nan in step" in measured.error
    assert evaluator(floating, quantized, digits)(uniform(quantized, "w4a4")).ok


def test_too_little_memory_is_a_failed_measurement_and_other_errors_are_the_user_s(digits, floating, quantized):
    def tuned(error: Exception) -> QATEvaluator:
        def failing(*_: Any) -> Tensor:
            raise error

        settings = QATConfig(steps=2)
        tuner = FineTuner(
            floating, quantized, digits.train, settings=settings, loss=F.cross_entropy, training_step=failing
        )
        return QATEvaluator(tuner, quantized, digits.search)

    policy = uniform(quantized, "w4a4")
    assert "out of memory" in tuned(torch.OutOfMemoryError("no room"))(policy).error
    with pytest.raises(InputError, match=r"fine-tuning failed: KeyError: 'x' \(test_qat_evaluator.py:\d+\)"):
        tuned(KeyError("x"))(policy)
    with pytest.raises(InputError, match="policy"):
        evaluator(floating, quantized, digits)(Policy({"stem": Precision.parse("w4a4")}))


EXPERIMENT = """
seed = 1
[model]
name = "digits_cnn"
[data]
name = "digits"
[device]
profile = "bismo_cloud"
[space]
weights = ["int2", "int4"]
activations = ["int4"]
[quantization]
calibration_samples = 128
[evaluator]
kind = "qat"
[evaluator.qat]
steps = 3
[budgets]
average_weight_bits = 3.0
"""


@pytest.fixture
def experiment_file(tmp_path: Path) -> Path:
    path = tmp_path / "x.toml"
    path.write_text(EXPERIMENT)
    (tmp_path / "own_step.py").write_text(
        "import torch.nn.functional as F\n"
        "def step(model, inputs, targets):\n    return F.cross_entropy(model(inputs), targets)\n"
        "def broken(model, inputs, targets):\n    return 1 / 0\n"
    )
    return path


def test_an_experiment_file_asks_for_fine_tuning(experiment_file):
    scores = []
    for overrides in ((), ("evaluator.qat.training_step=own_step:step",)):
        experiment = Experiment.load(experiment_file, overrides=overrides)
        experiment.check()
        measured = experiment.evaluator("search")(experiment.space.draw(Random(0)))
        assert measured.fidelity == "qat"
        scores.append(measured.details)
    assert scores[0] == scores[1]
    experiment = Experiment.load(experiment_file, overrides=["evaluator.qat.training_step=own_step:broken"])
    with pytest.raises(InputError, match=r"evaluator.qat.training_step = 'own_step:broken' failed: ZeroDivisionError"):
        experiment.evaluator("search")(experiment.reference_policy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("evaluator.qat.epochs=2", "give either `epochs` or `steps`"),
        ("evaluator.kind=ptq", "`qat` settings need kind"),
        ("evaluator.qat.temperature=2.0", "`temperature` is for distillation = 'kl'"),
        ("evaluator.qat.distillation_weight=1.0", "`distillation_weight` needs `distillation`"),
        ("evaluator.qat.quantizer=guess", "evaluator.qat.quantizer"),
        ("evaluator.qat.learning_rate=0", "evaluator.qat.learning_rate"),
    ],
)
def test_contradictory_settings_are_refused_in_one_line(experiment_file, change, message):
    with pytest.raises(InputError, match=message):
        load_experiment(experiment_file, overrides=[change])


@pytest.mark.parametrize(
    ("change", "message"),
    [("quantization.bias_correction=true", "bias_correction"), ("quantization.batch_norm=fold", "batch_norm = 'fold'")],
)
def test_compensations_that_training_replaces_are_refused_before_anything_is_measured(experiment_file, change, message):
    with pytest.raises(InputError, match=message):
        Experiment.load(experiment_file, overrides=[change]).check()


@pytest.mark.slow
def test_a_compiled_training_step_comes_to_the_same_loss(digits, floating, quantized):
    policy = uniform(quantized, "w3a3")
    eager = evaluator(floating, quantized, digits, steps=1)(policy)
    compiled = evaluator(floating, quantized, digits, steps=1, compile=True)(policy)
    assert compiled.details["loss"] == pytest.approx(eager.details["loss"], rel=0.02)
