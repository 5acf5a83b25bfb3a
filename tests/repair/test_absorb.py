"""Bias absorption: the same output where nothing was clipped, with smaller ranges."""

import pytest
import torch
from torch import nn

from haq import Experiment, InputError
from haq.commands.export import export_policy
from haq.edges.documents import write_json
from haq.export import load_quantized
from haq.repair.absorb import absorb_bias
from haq.repair.equalize import equalize, find_pairs
from haq.values.formats import Precision
from haq.values.policy import Policy


class Net(nn.Module):
    """A ReLU6 in front of a convolution with a batch norm behind, a pool and a flatten in front of a linear layer; a
    padded layer, and a padded pool."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU6) -> None:
        super().__init__()
        self.a, self.norm_a, self.clip = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), activation()
        self.b, self.norm_b = nn.Conv2d(6, 8, 1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.padded, self.norm_c = nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head, self.norm_d, self.last = nn.Linear(4 * 9, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)

    def forward(self, x):
        x = self.clip(self.norm_a(self.a(x)))
        x = torch.relu(self.norm_b(self.b(x)))
        x = nn.functional.max_pool2d(torch.relu(self.norm_c(self.padded(x))), 2)
        return self.last(torch.relu(self.norm_d(self.head(x.flatten(1)))))


def net(activation=nn.ReLU6, *, seed=0, deviation=0.05):
    """Batch norms with exact statistics, biases between 0 and 4, standard deviations that make clipping rare."""
    torch.manual_seed(seed)
    model, x = Net(activation), torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.weight.normal_().mul_(deviation)
                part.bias.copy_(torch.linspace(0, 4, part.num_features))
                part.momentum = None
        model.train()(x)
    return model.eval(), x


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.ReLU, nn.LeakyReLU])
@pytest.mark.parametrize("first", [False, True], ids=["alone", "equalized"])
def test_the_output_stays_and_the_ranges_shrink(activation, first):
    model, x = net(activation)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = equalize(model, x[:2]) if first else model
    absorbed = absorb_bias(start, x[:2], find_pairs(model, x[:2]))
    # Outputs differ where a value is more than three deviations below its mean; by no more than it misses.
    with torch.no_grad():
        wanted, found = model(x), absorbed(x)
    assert float((found - wanted).abs().max()) < 0.02 * float(wanted.abs().max())
    assert float((found - wanted).abs().median()) < 1e-5
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert largest(absorbed, "b", x) < 0.5 * largest(start, "b", x)
    assert largest(absorbed, "head", x) < 0.5 * largest(start, "head", x)
    assert largest(absorbed, "padded", x) == pytest.approx(largest(start, "padded", x), rel=1e-3)  # its border is zeros


def largest(model, layer, x):
    seen = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return float(seen[0].amax())


def test_the_bias_falls_by_what_exceeds_three_deviations():
    """Worked by hand: c = 4 - 3 * 1 = 1; the next layer's weight of 2 makes 2 of it."""
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.ReLU(), nn.Linear(1, 1)).eval()
    with torch.no_grad():
        model[1].weight.fill_(-1.0)
        model[1].bias.fill_(4.0)
        model[3].weight.fill_(2.0)
        model[3].bias.fill_(0.5)
    absorbed = absorb_bias(model, torch.zeros(2, 1))
    assert (absorbed[1].bias.item(), absorbed[3].bias.item()) == (3.0, 2.5)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),  # no batch norm
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4)),  # biases of zero
    ],
)
def test_a_model_with_nothing_to_absorb_is_refused(model):
    with pytest.raises(InputError, match="'absorb_bias' needs a batch norm") as caught:
        absorb_bias(model, torch.randn(2, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_what_is_exported_is_what_is_quantized(tmp_path):
    options = ["quantization.calibration_samples=64", "quantization.repairs=['absorb_bias','equalize']"]
    experiment = Experiment.load("experiments/mobilenet_v2_small_cortex_m7_ilp.toml", overrides=options)
    with torch.no_grad():
        for block in experiment.model.blocks:
            block.depthwise[1].bias.copy_(4 * block.depthwise[1].weight.abs())
    policy = Policy.uniform(experiment.network.layer_names, Precision.parse("w8a8"))
    for block in experiment.equalized_model.blocks:
        norm = block.depthwise[1]
        assert float((norm.bias - 3.001 * norm.weight.abs()).detach().max()) <= 1e-5
    write_json(tmp_path / "policy.json", {"policy": policy.to_doc()})
    export_policy(experiment, tmp_path / "policy.json", tmp_path / "F", format="torch")
    experiment.quantized.apply(policy)
    x = experiment.data.test.head(16).inputs
    with torch.no_grad():
        assert torch.equal(load_quantized(experiment.model, tmp_path / "F")(x), experiment.quantized(x))
