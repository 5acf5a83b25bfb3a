"""`sqnr` and `gradient` against numpy, by hand, on a network of two linear layers."""

import numpy as np
import pytest
import torch.nn.functional as F
from small_models import formats_of, quantize, rows, seeded
from torch import nn

from haq.sensitivity import METRICS
from haq.values.formats import Format
from haq.zoo import Split

INT3 = Format.integer(3)


@pytest.fixture
def split():
    return Split(rows(4, 60, 5), rows(5, 60, 3))


@pytest.fixture
def model(split):
    return quantize(seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))), split)


def errors(model, split):
    """Inputs, outputs and output errors of both layers, in double precision."""
    x = split.inputs.numpy().astype(float)
    for name in ("0", "1"):
        layer = model.layers[name]
        w, b = (t.detach().numpy().astype(float) for t in (layer.weight, layer.bias))
        wq = model.quantized_weight(name, INT3).numpy().astype(float)
        xq = model.activation_quantizer(name, INT3)(rows(0, 1).new_tensor(x)).numpy().astype(float)
        y = x @ w.T + b
        yield name, w, y, {"weights": x @ (wq - w).T, "activations": (xq - x) @ w.T}
        x = y


@pytest.mark.parametrize("kind", [0, 1], ids=["weights", "activations"])
def test_sqnr_is_noise_over_signal(model, split, kind):
    scores = METRICS["sqnr"](model, formats_of(model, "int3"), split.batches(25), loss=F.mse_loss)
    for name, _, y, error in errors(model, split):
        expected = np.square(error[["weights", "activations"][kind]]).sum() / np.square(y).sum()
        assert scores[kind][name]["int3"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", [0, 1], ids=["weights", "activations"])
def test_gradient_is_squared_gradient_times_error(model, split, kind):
    scores = METRICS["gradient"](model, formats_of(model, "int3"), split.batches(20), loss=F.mse_loss)
    (_, _, _, first), (_, w, y, last) = errors(model, split)
    by_output = 2 * (y - split.targets.numpy()) / y.shape[1]
    key = ["weights", "activations"][kind]
    for name, gradient, error in (("0", by_output @ w, first[key]), ("1", by_output, last[key])):
        expected = np.square(gradient * error).sum(1).mean()
        assert scores[kind][name]["int3"] == pytest.approx(expected, rel=1e-4)
