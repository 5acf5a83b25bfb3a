"""Each option reaches what it names, and no choice is made on data that it must not see."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from haq.experiment.experiment import Experiment
from haq.hardware.costs import cost_report
from haq.quant.nested import Batches
from haq.values.formats import Precision
from haq.values.policy import Policy

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
RECORDING = """
import torch.nn.functional as F
seen = []
def loss(outputs, targets):
    seen.append(targets)
    return F.cross_entropy(outputs, targets)
def metric(outputs, targets):
    seen.append(targets)
    return 1.0
def step(model, inputs, targets):
    seen.append(inputs)
    return F.cross_entropy(model(inputs), targets)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("recording")
    (place / "recording_options.py").write_text(RECORDING)
    return place


@pytest.fixture
def load(folder):
    def load(*overrides: str) -> Experiment:
        config = Experiment.load(QUICKSTART, overrides=("evaluator.device='cpu'", *overrides)).config
        return Experiment(config, folder=folder)

    yield load
    if "recording_options" in sys.modules:
        sys.modules["recording_options"].seen.clear()


def recorded() -> list[Any]:
    return sys.modules["recording_options"].seen


def rows(split: Batches) -> set[bytes]:
    return {row.numpy().tobytes() for inputs, _ in split.batches(64) for row in inputs}


def test_calibration_reads_so_many_samples_of_the_train_split(load) -> None:
    experiment = load("quantization.calibration_samples=40")
    inputs = torch.cat(experiment.quantized.calibration)
    assert torch.equal(inputs, experiment.given_data.train.head(40).inputs)


def test_fine_tuning_sees_the_train_split_alone(load) -> None:
    experiment = load(
        "evaluator.kind='qat'",
        "evaluator.qat.training_step='recording_options:step'",
        "evaluator.qat.steps=3",
        "evaluator.qat.batch_size=16",
    )
    policy = Policy.uniform(experiment.network.layer_names, Precision.parse("w4a8"))
    assert experiment.evaluator("search")(policy).ok
    seen = {row.numpy().tobytes() for batch in recorded() for row in batch}
    assert len(seen) >= 3 * 16
    assert seen <= rows(experiment.data.train)
    assert not seen & (rows(experiment.data.search) | rows(experiment.data.test))


def test_sensitivities_see_so_many_samples_of_the_train_split_in_such_batches(load) -> None:
    experiment = load(
        "sensitivity.metric='loss'",
        "sensitivity.samples=40",
        "sensitivity.batch_size=16",
        "evaluator.loss='recording_options:loss'",
        "space.weights=['int4']",
    )
    table = experiment.sensitivity()
    assert (table.details["samples"], table.details["batch_size"], table.details["seed"]) == (40, 16, 0)
    targets = experiment.data.train.head(40)
    batches = [wanted for _, wanted in targets.batches(16)]
    assert {len(batch) for batch in recorded()} == {16, 8}
    assert all(any(torch.equal(seen, batch) for batch in batches) for seen in recorded())


def test_the_seed_of_the_experiment_reaches_what_draws(load) -> None:
    small = ("sensitivity.samples=32", "space.weights=['int4']")
    zero, again, one = (load(*small, f"seed={seed}").sensitivity() for seed in (0, 0, 1))
    assert (zero.weights, zero.signature) == (again.weights, again.signature)
    assert zero.weights != one.weights
    assert zero.signature != one.signature


def test_samples_cut_the_search_split_and_never_the_test_split(load) -> None:
    experiment = load("evaluator.samples=20", "evaluator.metric='recording_options:metric'")
    for split, count in (("search", 20), ("test", len(experiment.data.test))):
        recorded().clear()
        experiment.evaluator(split).float_measurement()
        assert len(recorded()[0]) == count
        own = torch.cat([targets for _, targets in getattr(experiment.data, split).batches(64)])
        assert torch.equal(recorded()[0], own[:count])


def test_the_granularity_of_scales_reaches_the_costs(load) -> None:
    sizes = {}
    for granularity in ("tensor", "channel"):
        experiment = load(f"quantization.weight_granularity='{granularity}'")
        layer = experiment.network.layers[0]
        sizes[granularity] = experiment.cost_model.layer_cost(layer, Precision.parse("w8a8")).size_bytes
    assert sizes["channel"] - sizes["tensor"] == 4 * (layer.out_channels - 1)


def test_an_accuracy_drop_lowers_the_floor(load) -> None:
    experiment = load("budgets.accuracy_drop=1.5", "objective='latency_ms'")
    assert experiment.score_floor(90.0) == 88.5
    assert load().score_floor(90.0) is None


def test_percentages_are_of_what_uniform_8_bit_costs(load) -> None:
    experiment = load("budgets.size_bytes='40%'", "budgets.average_weight_bits='50%'")
    eight = Policy.uniform(experiment.network.layer_names, Precision.parse("w8a8"))
    totals = cost_report(experiment.network, experiment.cost_model, eight).totals
    assert experiment.budgets["size_bytes"] == pytest.approx(0.4 * totals["size_bytes"])
    assert experiment.budgets["average_weight_bits"] == 4.0


def test_a_rung_trains_so_many_steps_as_its_name_says(load) -> None:
    experiment = load(
        "evaluator.kind='qat'", "evaluator.qat.training_step='recording_options:step'", "evaluator.qat.steps=5"
    )
    policy = Policy.uniform(experiment.network.layer_names, Precision.parse("w4a8"))
    counts = []
    for rung in ("qat", "qat:2"):
        recorded().clear()
        assert experiment.evaluator("search", rung=rung)(policy).fidelity == rung
        counts.append(len(recorded()))
    assert counts[0] - counts[1] == 3


def test_jointly_trained_weights_are_trained_once_for_all_policies(load) -> None:
    experiment = load(
        "evaluator.kind='shared'",
        "evaluator.qat.training_step='recording_options:step'",
        "evaluator.qat.samples=64",
        "evaluator.qat.batch_size=32",
    )
    evaluator, counts = experiment.evaluator("search"), []
    for bits in ("w4a8", "w8a8"):
        assert evaluator(Policy.uniform(experiment.network.layer_names, Precision.parse(bits))).ok
        counts.append(len(recorded()))
    assert counts[0] == counts[1] > 0


def test_amp_scores_in_bfloat16(load) -> None:
    from haq.evaluate import METRICS

    seen = []

    def metric(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        seen.append(outputs)
        return METRICS["accuracy"](outputs, targets)

    for amp in ("false", "true"):
        experiment = load(f"evaluator.amp={amp}", "evaluator.samples=20")
        experiment.__dict__["metric"] = metric
        experiment.evaluator("search").float_measurement()
    exact, rounded = seen
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert not torch.equal(exact, exact.bfloat16().float())
