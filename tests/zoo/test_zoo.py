"""Reference models and data: what every one of them must be."""

import pytest
import torch
from safetensors import safe_open
from torch.utils.data import TensorDataset

from haq.trace import trace
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import CHECKPOINTS, DATASETS, MODELS, PACKAGED, DataSplits, Split, load_model
from haq.zoo.data import FASHION_MNIST_DEFAULT_DIR, load_fashion_mnist

SHAPES = {
    "digits_cnn": (1, 1, 8, 8),
    "efficientnet_lite0": (1, 3, 224, 224),
    "mobilenet_v2_small": (1, 1, 28, 28),
    "resnet20": (1, 1, 28, 28),
}
LEAST_TEST_ACCURACY = {"digits_cnn": 97.0, "resnet20": 92.5, "mobilenet_v2_small": 91.5}
fashion_mnist = pytest.mark.skipif(not FASHION_MNIST_DEFAULT_DIR.exists(), reason="no Fashion-MNIST on this machine")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_traces_and_takes_a_policy(name):
    model = MODELS[name]().eval()
    network = trace(model, torch.zeros(SHAPES[name]))
    layers = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert sorted(network.layer_names) == sorted(layers)
    policy = Policy.uniform(network.layer_names, Precision.parse("w4a8"))
    assert Policy.from_doc(policy.to_doc()) == policy


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(PACKAGED)))
def test_a_checkpoint_is_small_and_says_how_it_was_made(name):
    path = CHECKPOINTS / f"{name}.safetensors"
    assert path.stat().st_size < 2_000_000
    with safe_open(path, "pt") as stream:
        metadata = stream.metadata()
    assert metadata["command"].startswith(f"python scripts/train_zoo.py {name} ")
    assert float(metadata["test_accuracy"]) >= LEAST_TEST_ACCURACY[name]


def accuracy(name, split):
    model = load_model(name)
    with torch.inference_mode():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in split.batches(500))
    return 100.0 * hits / len(split)


def test_the_digits_network_is_as_good_as_it_says():
    assert accuracy("digits_cnn", DATASETS["digits"]().test) >= LEAST_TEST_ACCURACY["digits_cnn"]


@fashion_mnist
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2_small"])
def test_the_fashion_mnist_networks_are_as_good_as_they_say(name):
    assert accuracy(name, DATASETS["fashion_mnist"]().test) >= LEAST_TEST_ACCURACY[name]


@pytest.mark.parametrize("name", ["digits", pytest.param("fashion_mnist", marks=fashion_mnist)])
def test_splits_are_disjoint(name):
    data = DATASETS[name]()
    images = [{image.numpy().tobytes() for image in split.inputs} for split in (data.train, data.search, data.test)]
    shared = [images[0] & images[1], images[0] & images[2], images[1] & images[2]]
    assert max(map(len, shared)) <= 0.001 * len(images[0])  # Fashion-MNIST itself holds a few images twice


def test_missing_fashion_mnist_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="install Debian's package dataset-fashion-mnist"):
        load_fashion_mnist(tmp_path)


def test_a_split_takes_several_inputs():
    split = Split({"a": torch.arange(5), "b": (torch.zeros(5, 2), torch.ones(5))}, torch.arange(5))
    batches = list(split.batches(2))
    assert [len(y) for _, y in batches] == [2, 2, 1]
    assert batches[1][0]["a"].tolist() == [2, 3]
    assert batches[1][0]["b"][0].shape == (2, 2)
    assert len(split.head(3)) == 3


def pair(n):
    return torch.randn(n, 3), torch.arange(n)


@pytest.mark.parametrize(
    "value",
    [
        (pair(4), pair(3), pair(2)),
        {"train": pair(4), "search": pair(3), "test": pair(2)},
        [Split(*pair(4)), TensorDataset(*pair(3)), pair(2)],
    ],
    ids=["tuple", "dict", "mixed"],
)
def test_a_data_function_may_return(value):
    data = DataSplits.of(value)
    assert [len(split) for split in (data.train, data.search, data.test)] == [4, 3, 2]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "got NoneType"),
        ((pair(2), pair(2)), r"returns haq\.DataSplits or \(train, search, test\)"),
        ((pair(2), pair(2), 7), r"a split is haq\.Split, .* got int"),
        ((pair(2), pair(2), (torch.zeros(2), torch.zeros(3))), "one count of samples"),
        ((pair(2), pair(2), (torch.zeros(0), torch.zeros(0))), "at least one sample"),
        ((pair(2), pair(2), ("x", torch.zeros(3))), "tensors, .* got str"),
    ],
)
def test_other_data_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        DataSplits.of(value)
