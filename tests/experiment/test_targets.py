"""Experiments of language models and of values against the float model: what is compared is right or refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from haq import Experiment, InputError

MODULE = """
import torch
from torch import nn
from haq import DataSplits
from haq.zoo import Split

class Language(nn.Module):
    def __init__(self, last=11):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(8, 16), nn.Linear(16, last)

    def forward(self, x):
        return self.head(torch.relu(self.inner(x)))

def build():
    return Language()

def data():
    generator = torch.Generator().manual_seed(0)
    def split(n):
        return Split(torch.randn(n, 6, 8, generator=generator), torch.zeros(n))
    return DataSplits(split(40), split(30), split(30))
"""
EXPERIMENT = """
threads = 1
[model]
factory = "{module}:build"
[data]
factory = "{module}:data"
targets = "float_model"
[device]
profile = "riscv_xpulpnn"
[space]
weights = ["int2", "int8"]
activations = ["int8"]
[evaluator]
metric = "{metric}"
loss = "{loss}"
[cache]
enabled = false
[budgets]
size_bytes = "80%"
"""


@pytest.fixture
def experiment(tmp_path: Path):
    module = f"language_{tmp_path.name}".replace("-", "_").replace("[", "_").replace("]", "_")
    (tmp_path / f"{module}.py").write_text(MODULE)

    def load(metric: str, loss: str, *overrides: str) -> Experiment:
        file = tmp_path / "x.toml"
        file.write_text(EXPERIMENT.format(module=module, metric=metric, loss=loss))
        return Experiment.load(file, overrides=list(overrides))

    yield load
    sys.modules.pop(module, None)


def test_a_language_model_without_class_axis_is_refused_before_anything_is_measured(experiment):
    with pytest.raises(InputError, match=r"outputs \(40, 6, 11\) .*set evaluator\.class_axis"):
        experiment("negative_kl", "kl_divergence").check()


@pytest.mark.parametrize("metric", ["negative_kl", "agreement", "negative_perplexity"])
def test_with_it_the_classes_are_compared(experiment, metric):
    made = experiment(metric, "kl_divergence", "evaluator.class_axis=-1")
    made.check()
    targets = made.data.search.targets
    assert float(targets.sum(-1).sub(1).abs().max()) < 1e-5
    perfect = {"negative_kl": 0.0, "agreement": 100.0, "negative_perplexity": -1.0}[metric]
    assert made.evaluator("search").float_score() == pytest.approx(perfect, abs=1e-5)
    table = made.sensitivity()
    assert table.weights["head"]["int2"] > table.weights["head"]["int8"] > 0


def test_values_are_compared_as_they_are(experiment):
    made = experiment("negative_mse", "mse")
    made.check()
    assert made.evaluator("search").float_score() == pytest.approx(0.0, abs=1e-9)
    assert float(made.data.search.targets.min()) < 0


def test_the_axis_of_the_samples_is_refused(experiment):
    with pytest.raises(InputError, match=r"evaluator\.class_axis.*dimension 0 counts samples"):
        experiment("agreement", "kl_divergence", "evaluator.class_axis=0")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["quantization.percentile=99.0"],
            r"quantization\.percentile: is for .*= 'percentile', .*'balanced'",
        ),
        (["quantization.group_size=16"], r"quantization\.group_size: is for weight_granularity = 'group'.*'channel'"),
    ],
)
def test_settings_that_nothing_reads_are_refused(experiment, overrides, message):
    with pytest.raises(InputError, match=message):
        experiment("negative_mse", "mse", *overrides).check()


@pytest.mark.parametrize(
    "overrides",
    [
        ["quantization.percentile=99.0", "quantization.activation_calibration=percentile"],
        ["quantization.group_size=16", "quantization.weight_granularity=group"],
        ["quantization.percentile=99.99", "quantization.group_size=64"],
    ],
)
def test_those_that_are_read_are_not(experiment, overrides):
    experiment("negative_mse", "mse", *overrides).check()
