from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from haq.evaluate import PTQEvaluator
from haq.experiment.experiment import Experiment
from haq.runs.search import run_experiment
from haq.training import MixedModel
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
CHOICES = [Precision.parse(text) for text in ("w2a8", "w4a4", "w8a8")]


def mixed(experiment: Experiment, choices: list[Precision], *, batch_size: int = 64) -> MixedModel:
    return MixedModel(
        experiment.model,
        experiment.quantized,
        choices=dict.fromkeys(experiment.network.layer_names, choices),
        split=experiment.data.train.head(batch_size),
        loss=experiment.loss,
        batch_size=batch_size,
    )


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment.load(QUICKSTART)


@pytest.mark.parametrize("choice", range(len(CHOICES)))
def test_a_mixture_of_one_is_the_quantized_model(experiment: Experiment, choice: int) -> None:
    parts = np.eye(len(CHOICES))[choice]
    loss, _ = mixed(experiment, CHOICES)(dict.fromkeys(experiment.network.layer_names, parts), 0)
    policy = Policy.uniform(experiment.network.layer_names, CHOICES[choice])
    split = experiment.data.train.head(64)
    assert loss == pytest.approx(PTQEvaluator(experiment.quantized, split)(policy).details["loss"], rel=1e-3)


def test_derivatives_are_those_of_finite_differences(experiment: Experiment) -> None:
    """With float activations nothing is rounded behind the weights, so the slope by a weight's part is exact."""
    choices = [Precision.parse(text) for text in ("w2afp32", "w8afp32")]
    model = mixed(experiment, choices)
    layers = experiment.network.layer_names
    at = {layer: np.array([0.3, 0.7]) for layer in layers}
    _, slopes = model(at, 0)
    for layer in layers:
        for index in range(2):
            step = np.zeros(2)
            step[index] = 1e-3
            high, low = (model({**at, layer: at[layer] + sign * step}, 0)[0] for sign in (1, -1))
            assert slopes[layer][index] == pytest.approx((high - low) / 2e-3, rel=0.06, abs=1e-4)


def test_weights_train_only_when_asked_and_the_float_model_never_changes(experiment: Experiment) -> None:
    model = mixed(experiment, CHOICES)
    before = {name: value.clone() for name, value in experiment.model.state_dict().items()}
    parts = dict.fromkeys(experiment.network.layer_names, np.array([0.2, 0.5, 0.3]))
    frozen = [model(parts, 0)[0] for _ in range(2)]
    trained = [model(parts, 0, 0.05)[0] for _ in range(12)]
    assert frozen[0] == frozen[1] == trained[0]
    assert trained[-1] < trained[0]
    assert all(torch.equal(value, before[name]) for name, value in experiment.model.state_dict().items())


def test_batches_come_round_again(experiment: Experiment) -> None:
    layers = experiment.network.layer_names
    model = MixedModel(
        experiment.model,
        experiment.quantized,
        choices=dict.fromkeys(layers, CHOICES),
        split=experiment.data.train.head(64),
        loss=experiment.loss,
        batch_size=32,
    )
    parts = dict.fromkeys(layers, np.array([0.2, 0.5, 0.3]))
    losses = [model(parts, step)[0] for step in range(4)]
    assert losses[0] == losses[2] != losses[1] == losses[3]


def test_haq_search_runs_it_end_to_end(tmp_path: Path) -> None:
    overrides = ["search.strategy=differentiable", "search.options.steps=4", "search.max_trials=2"]
    experiment = Experiment.load(QUICKSTART, overrides=overrides)
    _, result = run_experiment(experiment, out=tmp_path / "run")
    assert result["trials"] > 2
    assert (tmp_path / "run" / "policy.json").exists()


def test_folded_batch_norm_is_refused_before_anything_is_measured() -> None:
    experiment = Experiment.load(
        QUICKSTART, overrides=["search.strategy=differentiable", "quantization.batch_norm=fold"]
    )
    with pytest.raises(InputError, match="batch_norm = 'fold': strategy 'differentiable' mixes weights"):
        experiment.check()
