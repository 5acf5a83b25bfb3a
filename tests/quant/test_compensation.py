"""Folding, re-estimation and bias correction against what they are defined to do."""

import pytest
import torch
from torch import nn

from haq.quant import QuantizedModel, correct_bias, reestimate_batch_norm
from haq.quant.settings import QuantizationConfig
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy


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
    data = batches(16, 8)
    model = QuantizedModel(net, calibration=data, quantization=QuantizationConfig(batch_norm=batch_norm))
    folded = ("bn1", "bn2", "both", "bn4") if batch_norm == "fold" else ("conv", "up", "both", "fc")
    pairs = dict(zip(("conv", "up", "both", "fc"), folded, strict=True))
    read, wrote = {}, {}
    for layer, behind in pairs.items():
        net.get_submodule(layer).register_forward_pre_hook(lambda m, args, n=layer: read.update({n: args[0]}))
        net.get_submodule(behind).register_forward_hook(lambda m, args, y, n=layer: wrote.update({n: y}))
    with torch.no_grad():
        net(torch.cat([inputs for inputs, _ in data]))

    def distances() -> dict:
        outputs = {name: model.layers[name](read[name]) for name in pairs}
        dims = {name: [d for d in range(y.dim()) if d != 1] for name, y in outputs.items()}
        return {
            name: float((y.mean(dims[name]) - wrote[name].mean(dims[name])).abs().max()) for name, y in outputs.items()
        }

    model.apply(uniform(model, "w3a4"))
    with torch.no_grad():
        before = distances()
        correct_bias(model)
        after = distances()
    assert all(before[name] > 3e-3 for name in pairs)
    assert all(after[name] < 1e-5 for name in pairs)


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
    with torch.no_grad():
        read = torch.cat([x, net.fc(x).relu()])
        wanted = net.fc(read).mean(0)
        assert (model.layers["fc"](read).mean(0) - wanted).abs().max() > 1e-3
        correct_bias(model)
        torch.testing.assert_close(model.layers["fc"](read).mean(0), wanted)


def test_replay_runs_one_layer_in_any_precision_and_switches_nothing(net):
    model = QuantizedModel(net, calibration=batches(8), quantization=QuantizationConfig(batch_norm="fold"))
    model.apply(uniform(model, "w2a4"))
    x = torch.randn(4, 2, 8, 8)
    with torch.no_grad():
        before = model(x)
        correct_bias(model)
        corrected = model(x)
        assert torch.equal(model.replay("conv", Precision.parse("wfp32afp32"), (x,)), net.conv(x))
        other = model.replay("conv", Precision.parse("w8a8"), (x,))
        assert torch.equal(model(x), corrected)
        assert not torch.equal(before, corrected)
        model.apply(uniform(model, "w8a8"))
        assert torch.equal(model.layers["conv"](x), other)


def test_one_sample_is_too_few_to_reestimate(net):
    model = QuantizedModel(net, calibration=batches(1))
    with pytest.raises(InputError, match="batches of one sample; raise the batch size"):
        reestimate_batch_norm(model)
    assert not model.module.get_submodule("bn1").training
