"""Every experiment that is shipped can be run."""

from pathlib import Path

import pytest

from haq.experiment.experiment import Experiment
from haq.hardware import load_profile
from haq.search import STRATEGIES
from haq.values.formats import Precision
from haq.zoo import DATASETS, MODELS

FILES = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_names_what_exists(path):
    config = Experiment.load(path).config
    assert config.name == path.stem
    assert config.search.strategy in STRATEGIES
    assert config.model.factory or config.model.name in MODELS
    assert config.data.factory or config.data.name in DATASETS
    offered = set(load_profile(config.device.profile).all_precisions)
    asked = {Precision.parse(f"w{w[3:]}a{a[3:]}") for w in config.space.weights for a in config.space.activations}
    assert asked & offered


@pytest.mark.parametrize("model", ["digits_cnn", "resnet20", "mobilenet_v2_small"])
def test_each_model_has_experiments_for_three_devices(model):
    configs = [Experiment.load(path).config for path in FILES]
    assert len({config.device.profile for config in configs if config.model.name == model}) >= 3
