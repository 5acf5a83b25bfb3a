"""A file is right in the session that anybody opens, with ONNX Runtime's defaults."""

import onnxruntime as ort
import pytest
import torch
from torch import nn

from haq.deployed.state import capture
from haq.export.onnx.model import onnx_model
from haq.quant import QuantizedModel
from haq.values.formats import Precision
from haq.values.policy import Policy


class Net(nn.Module):
    """Biases that are far from zero, in convolutions that read and write quantized tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3)
        self.turned = nn.ConvTranspose2d(8, 4, 3)
        self.last = nn.Conv2d(4, 4, 3, groups=2)
        self.head = nn.Linear(4, 3)
        for layer in (self.first, self.turned, self.last):
            nn.init.uniform_(layer.bias, -1.0, 1.0)

    def forward(self, x):
        x = torch.relu(self.turned(torch.relu(self.first(x))))
        return self.head(self.last(x).mean((2, 3)))


@pytest.mark.parametrize("precision", ["w2a4", "w4a4", "w3a3", "w4a8", "w8a8", "wfp32a8"])
def test_the_runtime_rounds_no_bias_by_itself(precision):
    torch.manual_seed(0)
    model, data = Net().eval(), torch.randn(64, 1, 10, 10)
    quantized = QuantizedModel(model, calibration=[(data, None)])
    quantized.apply(Policy.uniform(quantized.layers, Precision.parse(precision)))
    file = onnx_model(model, capture(quantized), data[:2]).SerializeToString()
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: data.numpy()})[0])
    wanted = quantized(data).detach()
    # A rounding tie may move single values by a step; a rounded bias moves all of them.
    assert float((found - wanted).norm() / wanted.norm()) < 2e-3


def test_a_batch_norm_keeps_its_epsilon():
    """It is large beside the variance here: 1e-5 in its place would double what the layer writes."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6, eps=0.5), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    model[1].running_var.uniform_(0.05, 0.2)
    data = torch.randn(64, 2, 8, 8)
    quantized = QuantizedModel(model, calibration=[(data, None)])
    quantized.apply(Policy.uniform(quantized.layers, Precision.parse("w8a8")))
    file = onnx_model(model, capture(quantized), data[:2]).SerializeToString()
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: data.numpy()})[0])
    wanted = quantized(data).detach()
    assert float((found - wanted).norm() / wanted.norm()) < 0.01
