"""Equalization changes no output, and makes ranges alike."""

import pytest
import torch
from torch import nn

from haq import Experiment, InputError
from haq.commands.export import export_policy
from haq.edges.documents import write_json
from haq.export import load_quantized
from haq.repair.equalize import equalize, find_pairs
from haq.values.formats import Precision
from haq.values.policy import Policy


class Net(nn.Module):
    """Pairs through batch norm, ReLU, ReLU6, pool and flatten; depthwise and grouped; one that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 4, 1, groups=2)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4 * 9, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.depthwise(self.stem(x))))
        x = torch.relu(self.grouped(x))
        x = nn.functional.max_pool2d(self.left(x) + self.right(x), 2)
        return self.last(nn.functional.leaky_relu(self.head(x.flatten(1))))


def net(seed=0):
    torch.manual_seed(seed)
    model = Net()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.05, 4.0)
                part.weight.normal_().mul_(2)
                part.bias.normal_()
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.weight.mul_(torch.logspace(-2, 1, len(part.weight)).reshape(-1, *[1] * (part.weight.dim() - 1)))
    return model.eval()


@pytest.mark.parametrize("seed", range(5))
def test_the_float_model_computes_the_same(seed):
    model, x = net(seed), torch.randn(16, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    equalized = equalize(model, x[:2])
    with torch.no_grad():
        wanted, found = model.double()(x.double()), equalized.double()(x.double())
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    assert all(torch.equal(value, model.float().state_dict()[name]) for name, value in before.items())


def test_only_what_is_read_once_and_scales_is_paired():
    pairs = [(pair.first, pair.second) for pair in find_pairs(net(), torch.randn(2, 3, 8, 8))]
    assert pairs == [("stem.0", "depthwise"), ("depthwise", "grouped"), ("head", "last")]


def test_ranges_of_a_pair_are_alike_afterwards():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    with torch.no_grad():
        model[0].weight.mul_(torch.logspace(-2, 2, 8)[:, None])
    after = equalize(model, torch.randn(2, 6))
    ours, theirs = after[0].weight.abs().amax(1), after[2].weight.abs().amax(0)
    assert torch.allclose(ours, theirs, rtol=1e-3)
    # Both are the geometric mean of what they were (Nagel et al. 2019, equation 11).
    assert torch.allclose(ours, (model[0].weight.abs().amax(1) * model[2].weight.abs().amax(0)).sqrt(), rtol=1e-3)


def test_a_batch_norm_that_is_estimated_anew_still_gives_the_same():
    model, x = net(3), torch.randn(256, 3, 8, 8)
    outputs = []
    for part in (model, equalize(model, x[:2])):
        for norm in part.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = None
                norm.reset_running_stats()
                norm.train()
        with torch.no_grad():
            part(x)
            outputs.append(part.eval()(x))
    misses = float((outputs[1] - outputs[0]).norm() / outputs[0].norm())
    assert misses < 0.1  # epsilon does not scale; a norm that lost its scale is off by 1 and more


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4)),
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 4)),
    ],
)
def test_a_model_without_such_a_pair_is_refused(model):
    with pytest.raises(InputError, match="'equalize' needs two layers joined by ReLU"):
        equalize(model, torch.randn(2, 4))


MOBILENET = "experiments/mobilenet_v2_small_cortex_m7_ilp.toml"


@pytest.mark.slow
def test_it_helps_weights_with_one_scale_for_a_tensor_and_is_exported(tmp_path):
    """A network whose channels were scaled apart (the same function) loses most of its accuracy per tensor, until
    equalization brings them together again."""
    options = [
        "evaluator.samples=200",
        "quantization.weight_granularity='tensor'",
        "quantization.calibration_samples=128",
    ]
    scores = {}
    for repairs in ("[]", "['equalize']"):
        experiment = Experiment.load(MOBILENET, overrides=[*options, f"quantization.repairs={repairs}"])
        _scale_apart(experiment.model)
        policy = Policy.uniform(experiment.network.layer_names, Precision.parse("w8a8"))
        floating = experiment.evaluator("search").float_score()
        scores[repairs] = experiment.evaluator("search")(policy).score
    assert scores["['equalize']"] > floating - 2
    assert scores["[]"] < floating - 8
    write_json(tmp_path / "policy.json", {"policy": policy.to_doc()})
    export_policy(experiment, tmp_path / "policy.json", tmp_path / "F", format="torch")
    x = experiment.data.test.head(16).inputs
    with torch.no_grad():
        assert torch.equal(load_quantized(experiment.model, tmp_path / "F")(x), experiment.quantized(x))


def _scale_apart(model):
    """Spread the depthwise layers' channels over three decades, taken back by the projection behind them."""
    with torch.no_grad():
        for block in model.blocks:
            _, norm, clip = block.depthwise
            project = block.project[0]
            assert isinstance(clip, nn.ReLU6)
            factor = torch.logspace(-3, 0, norm.num_features)[torch.randperm(norm.num_features)]
            norm.weight.mul_(factor)
            norm.bias.mul_(factor)
            project.weight.div_(factor.reshape(1, -1, 1, 1))
