"""`loss` and `kl` against models rebuilt by hand, one layer changed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_models import Conv, formats_of, seeded, two_head_loss
from torch import nn

from haq.sensitivity import METRICS
from haq.values.formats import Format


def changed(model, layer, kind, fmt):
    """The float network with one layer's weight or input quantized, by torch's means alone."""
    net = seeded(Conv)
    part = net.get_submodule(layer)
    if kind == "weights":
        part.weight = nn.Parameter(model.quantized_weight(layer, fmt))
    else:
        quantizer = model.activation_quantizer(layer, fmt)
        part.register_forward_pre_hook(lambda module, args: quantizer(args[0]))
    return net


@pytest.mark.parametrize("kind", ["weights", "activations"])
@pytest.mark.parametrize("layer", ["conv", "fc"])
@pytest.mark.parametrize("bits", [2, 4])
def test_loss_is_the_difference_to_float(conv_model, images, layer, kind, bits):
    fmt = Format.integer(bits)
    scores = METRICS["loss"](conv_model, formats_of(conv_model, fmt.name), images.batches(40), loss=F.cross_entropy)
    with torch.no_grad():
        before = F.cross_entropy(seeded(Conv)(images.inputs), images.targets)
        after = F.cross_entropy(changed(conv_model, layer, kind, fmt)(images.inputs), images.targets)
    got = scores[["weights", "activations"].index(kind)][layer][fmt.name]
    assert got == pytest.approx(float(after - before), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", ["weights", "activations"])
def test_kl_of_logits(conv_model, images, kind):
    fmt = Format.integer(3)
    scores = METRICS["kl"](conv_model, formats_of(conv_model, "int3"), images.batches(40), loss=F.cross_entropy)
    with torch.no_grad():
        p = seeded(Conv)(images.inputs).double().softmax(1)
        q = changed(conv_model, "conv", kind, fmt)(images.inputs).double().softmax(1)
    expected = float((p * (p / q).log()).sum(1).mean())
    assert scores[["weights", "activations"].index(kind)]["conv"]["int3"] == pytest.approx(expected, rel=1e-3)


def test_kl_of_other_outputs_is_normalised_squared_error(two_heads, vectors):
    scores = METRICS["kl"](two_heads, formats_of(two_heads, "int3"), [(vectors.inputs, vectors.targets)], loss=None)
    net = copy.deepcopy(two_heads.module)
    net.place.weight = nn.Parameter(two_heads.quantized_weight("place", Format.integer(3)))
    with torch.no_grad():
        reference, place = two_heads(vectors.inputs), net(vectors.inputs)["place"]
    expected = F.mse_loss(place, reference["place"]) / reference["place"].square().mean() / 2
    assert scores[0]["place"]["int3"] == pytest.approx(float(expected), rel=1e-4)


def test_a_layer_called_twice_is_quantized_in_both_calls(two_heads, vectors):
    scores = METRICS["loss"](two_heads, formats_of(two_heads, "int2"), vectors.batches(64), loss=two_head_loss)
    net = copy.deepcopy(two_heads.module)
    net.body.weight = nn.Parameter(two_heads.quantized_weight("body", Format.integer(2)))
    with torch.no_grad():
        expected = two_head_loss(net(vectors.inputs), vectors.targets) - two_head_loss(
            two_heads(vectors.inputs), vectors.targets
        )
    assert scores[0]["body"]["int2"] == pytest.approx(float(expected), rel=1e-3)
