"""Models and data sent to workers: the same values, in the memory that they came in."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from haq.experiment.shipping import Shipment, pack, unpack
from haq.values.errors import InputError

pytest.importorskip("ray")

TENSORS = {
    "float": torch.randn(3, 4),
    "bfloat16": torch.randn(5).bfloat16(),
    "classes": torch.arange(7),
    "mask": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(2.5),
    "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "view": torch.randn(6, 6)[::2, 1:].T,
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_out_as_it_went_in(name):
    tensor = TENSORS[name]
    back = unpack(pack(tensor))
    assert (back.dtype, back.shape, torch.equal(back, tensor)) == (tensor.dtype, tensor.shape, True)
    if name == "channels_last":
        assert back.stride() == tensor.stride()


def test_a_model_computes_the_same_and_shares_what_it_shared():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    model[4].weight = model[3].weight
    model[0].bias.requires_grad_(False)
    other = unpack(pack(model))
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(other(x), model(x))
    assert other[4].weight is other[3].weight
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]


def test_nothing_is_copied():
    shipment = pack({"weights": torch.randn(100), "data": (torch.randn(10, 10), np.arange(4))})
    for array in shipment.arrays:
        array.flags.writeable = False
    value = unpack(shipment)
    places = [array.__array_interface__["data"][0] for array in shipment.arrays]
    assert value["weights"].data_ptr() in places
    assert value["data"][0].data_ptr() in places
    assert len(shipment.pickled) < 2000


def test_what_cannot_be_pickled_is_one_line():
    with pytest.raises(InputError, match="cannot be sent to workers"):
        pack({"lock": threading.Lock()})


def test_a_function_of_a_console_is_sent_along():
    assert unpack(pack(lambda x: x + 1))(1) == 2
    assert isinstance(pack(1), Shipment)
