"""Folding, re-estimation and bias correction against what they are defined to do."""

import pytest
import torch
from torch import nn

from haq.config import QuantizationConfig
from haq.errors import InputError
from haq.quant import QuantizedModel, correct_bias, reestimate_batch_norm
from haq.types import Policy, Precision


class Net(nn.Module):
    """Convolution, transposed grouped convolution and linear layer, each with a batch norm; one that may not fold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 8, 2, groups=2)
        self.bn2 = nn.BatchNorm2d(8)
        self.both = nn.Conv2d(8, 8, 1)
        self.bn3 = nn.BatchNorm2d(8, affine=False)
        self.fc = nn.Linear(8, 5)
        self.bn4 = nn.BatchNorm1d(5)

    def forward(self, x):
        x = self.bn1(self.conv(x)).relu()
        x = self.bn2(self.up(x)).relu()
        x = self.both(x)
        x = x + self.bn3(x)  # the batch norm is not the only reader
        return self.bn4(self.fc(x.mean((2, 3))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return net.eval()


def batches(*sizes: int) -> list:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 2, 8, 8, generator=generator) + 0.3, None) for size in sizes]


def uniform(model: QuantizedModel, text: str) -> Policy:
    return Policy.uniform(model.layers, Precision.parse(text))


def test_folded_batch_norm_computes_the_same(net):
    model = QuantizedModel(net, calibration=batches(8), quantization=QuantizationConfig(batch_norm="fold"))
    x = torch.randn(4, 2, 8, 8)
    model.apply(uniform(model, "w16afp32"))
    folded = [
        name for name in ("bn1", "bn2", "bn3", "bn4") if isinstance(model.module.get_submodule(name), nn.Identity)
    ]
    assert folded == ["bn1", "bn2", "bn4"]
    torch.testing.assert_close(model(x), net(x), rtol=1e-3, atol=1e-3)  # 16-bit weights
    for name in ("conv", "up", "fc"):
        layer = model.layers[name]
        layer._parameters["weight"] = nn.Parameter(model.float_weight(name))
    model.set_precision("both", None)
    torch.testing.assert_close(model(x), net(x), rtol=1e-5, atol=1e-5)
    model.apply(None)
    assert torch.equal(model(x), net(x))


def test_folding_leaves_a_batch_norm_behind_two_calls_alone():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.bn(self.fc(self.bn(self.fc(x))))

    x = torch.randn(8, 4)
    model = QuantizedModel(Twice().eval(), calibration=[(x, None)], quantization=QuantizationConfig(batch_norm="fold"))
    model.apply(uniform(model, "w8a8"))
    assert isinstance(model.module.get_submodule("bn"), nn.BatchNorm1d)


def test_reestimated_statistics_are_those_of_what_the_batch_norms_read(net):
    data = batches(7, 16, 5)
    model = QuantizedModel(net, calibration=data)
    model.apply(uniform(model, "w3a4"))
    read = {name: [] for name in ("bn1", "bn2", "bn3", "bn4")}
    handles = [
        model.module.get_submodule(name).register_forward_pre_hook(
            lambda m, args, name=name: read[name].append(args[0].detach())
        )
        for name in read
    ]
    reestimate_batch_norm(model)
    for handle in handles:
        handle.remove()
    for name, tensors in read.items():
        dims = (0, 2, 3) if tensors[0].dim() == 4 else (0,)
        variance, mean = torch.var_mean(torch.cat(tensors).double(), dims, correction=0)
        norm = model.module.get_submodule(name)
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-5, atol=1e-6)
        assert not norm.training
        assert norm.momentum == 0.1


def test_with_one_batch_reestimation_is_a_training_pass(net):
    data = batches(32)
    model = QuantizedModel(net, calibration=data)
    reestimate_batch_norm(model)
    torch.testing.assert_close(model(data[0][0]), net.train()(data[0][0]), rtol=1e-4, atol=1e-5)


def test_the_next_apply_undoes_compensation(net):
    data = batches(16, 16)
    model = QuantizedModel(net, calibration=data)
    x = torch.randn(4, 2, 8, 8)
    model.apply(uniform(model, "w2a4"))
    plain = model(x)
    for compensate in (reestimate_batch_norm, correct_bias):
        compensate(model)
        assert not torch.equal(model(x), plain)
        model.apply(uniform(model, "w2a4"))
        assert torch.equal(model(x), plain)
    model.apply(None)
    assert torch.equal(model(x), net(x))


@pytest.mark.parametrize("batch_norm", ["keep", "fold"])
def test_bias_correction_restores_the_mean_output_of_every_layer(net, batch_norm):
    data = batches(16)
    model = QuantizedModel(net, calibration=data, quantization=QuantizationConfig(batch_norm=batch_norm))

    def means() -> dict:
        seen = {}
        names = ("bn1", "bn2", "both", "bn4")
        handles = [
            model.module.get_submodule(name).register_forward_hook(
                lambda m, args, y, name=name: seen.update({name: y.mean([d for d in range(y.dim()) if d != 1])})
            )
            for name in names
        ]
        model(data[0][0])
        for handle in handles:
            handle.remove()
        return seen

    model.apply(None)
    expected = means()
    model.apply(uniform(model, "w3a4"))
    before = means()
    correct_bias(model)
    for name, mean in means().items():
        assert (before[name] - expected[name]).abs().max() > 1e-2
        torch.testing.assert_close(mean, expected[name], rtol=1e-4, atol=1e-5)


def test_bias_correction_of_a_module_called_twice_averages_its_calls():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return self.fc(self.fc(x).relu())

    torch.manual_seed(0)
    net, x = Twice().eval(), torch.randn(64, 6)
    model = QuantizedModel(net, calibration=[(x, None)])
    model.apply(uniform(model, "w2a8"))

    def distance() -> float:
        with torch.no_grad():
            return float((model(x).mean(0) - net(x).mean(0)).abs().sum())

    before = distance()
    correct_bias(model)
    assert distance() < before


def test_one_sample_is_too_few_to_reestimate(net):
    model = QuantizedModel(net, calibration=batches(1))
    with pytest.raises(InputError, match="batches of one sample; raise the batch size"):
        reestimate_batch_norm(model)
    assert not model.module.get_submodule("bn1").training
