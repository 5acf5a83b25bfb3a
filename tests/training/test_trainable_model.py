"""The trainable copy against the quantized model that it trains for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.profiler import ProfilerActivity, profile

from haq.quant import QuantizedModel, reestimate_batch_norm
from haq.quant.settings import QuantizationConfig
from haq.training import SCHEMES, TrainableModel
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import MODELS
from haq.zoo.resnet import BasicBlock


class Branches(nn.Module):
    """Two convolutions that read one tensor, a grouped and a transposed one, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.right = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.left(x) + self.right(x))
        return self.head(F.relu(self.up(x)).mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 2, 6, 6, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(2)
    ]


def wrapped(model: nn.Module, batches: list[tuple[Tensor, Tensor]], **settings: str | int) -> QuantizedModel:
    return QuantizedModel(model, calibration=batches, quantization=QuantizationConfig.model_validate(settings))


def uniform(model: QuantizedModel, text: str) -> Policy:
    return Policy.uniform(model.layers, Precision.parse(text))


def train(trainable: TrainableModel, batches: list[tuple[Tensor, Tensor]], steps: int = 3) -> list[float]:
    decayed, others = trainable.parameter_groups()
    optimizer = torch.optim.SGD([*decayed, *others], 0.05)
    trainable.module.train()
    losses = []
    for step in range(steps):
        inputs, targets = batches[step % len(batches)]
        optimizer.zero_grad()
        loss = F.cross_entropy(trainable(trainable.prepared(inputs)), targets)
        loss.backward()
        optimizer.step()
        trainable.bounded()
        losses.append(float(loss.detach()))
    trainable.module.eval()
    return losses


@pytest.mark.parametrize(
    "text", ["w8a8", "w4a3", "w2a2", "wternaryaternary", "wbinaryabinary", "wfp16abf16", "wfp32a4"]
)
@pytest.mark.parametrize(
    "settings", [{}, {"weight_granularity": "group", "group_size": 5}, {"weight_granularity": "tensor"}], ids=str
)
def test_untrained_it_gives_the_quantized_model_s_outputs(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], text: str, settings: dict[str, str | int]
) -> None:
    quantized = wrapped(model, batches, **settings)
    trainable = TrainableModel(model, quantized)
    policy = uniform(quantized, text)
    quantized.apply(policy)
    trainable.apply(policy)
    inputs = batches[0][0]
    # Ternary activations train on a step whose half is the threshold.
    tolerance = 0.3 if "aternary" in text else 1e-5
    with torch.no_grad():
        torch.testing.assert_close(trainable(trainable.prepared(inputs)), quantized(inputs), rtol=0, atol=tolerance)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("ternary", ["twn", "ttq"])
def test_training_lowers_the_loss_leaves_the_float_model_alone_and_is_undone_by_apply(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], scheme: str, ternary: str
) -> None:
    before = copy.deepcopy(model.state_dict())
    quantized = wrapped(model, batches)
    trainable = TrainableModel(model, quantized, scheme=scheme, ternary=ternary)
    policy = Policy({**uniform(quantized, "w3a4"), "left": Precision.parse("wternarya4")})
    trainable.apply(policy)
    first = train(trainable, batches, 30)
    assert first[-1] < first[0] - 0.02
    trainable.apply(policy)
    assert train(trainable, batches, 30) == first
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_parameter_trains_once_and_only_weights_decay(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    quantized = wrapped(model, batches)
    trainable = TrainableModel(model, quantized)
    trainable.apply(uniform(quantized, "w4a4"))
    decayed, others = trainable.parameter_groups()
    F.cross_entropy(trainable(trainable.prepared(batches[0][0])), batches[0][1]).backward()
    assert all(parameter.grad is not None for parameter in [*decayed, *others])
    assert sorted(tuple(p.shape) for p in decayed) == sorted(
        tuple(layer.weight.shape) for layer in quantized.layers.values()
    )
    steps_and_zero_d = [p for p in others if p.dim() == 0]
    assert len(steps_and_zero_d) == 4  # left and right read one tensor


def test_layers_that_read_one_tensor_share_its_quantizer_only_in_the_same_format(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    quantized = wrapped(model, batches)
    trainable = TrainableModel(model, quantized)
    policy = uniform(quantized, "w4a4")
    counts = []
    for right in ("w4a4", "w4a8", "w8a4"):
        trainable.apply(Policy({**policy, "right": Precision.parse(right)}))
        counts.append(sum(kind == "input" for (kind, _, _), _ in trainable.slots()))
    assert counts == [4, 5, 4]


def loss_gradients(forward: nn.Module, batch: tuple[Tensor, Tensor], **options: bool) -> dict[str, Tensor]:
    forward.zero_grad()
    F.cross_entropy(forward(batch[0]), batch[1]).backward(**options)
    return {
        name.removeprefix("_orig_mod."): value.grad.clone()
        for name, value in forward.named_parameters()
        if value.grad is not None
    }


def test_one_captured_training_step_serves_all_integer_policies(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    """And its gradients, of plain operators, are those of eager's own functions."""
    quantized = wrapped(model, batches)
    trainable = TrainableModel(model, quantized)
    batch = trainable.prepared(batches[0][0]), batches[0][1]
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(trainable.module, backend=counter)
    trainable.module.train()
    for text in ("w8a8", "w4a4", "w2a3", "w5a8"):
        trainable.apply(uniform(quantized, text))
        expected, found = loss_gradients(trainable.module, batch), loss_gradients(compiled, batch)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=2e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert counter.frame_count == 1


def partitioned(module: nn.Module) -> Callable[..., Tensor]:
    """Compiled as far as the choice of what is kept and what is made again, which takes no C++ compiler."""
    torch._dynamo.reset()
    return torch.compile(module, backend="aot_eager_decomp_partition", fullgraph=True)


@pytest.mark.parametrize("text", ["wternaryaternary", "wfp16abf16", "wbinaryafp32"])
def test_compiled_gradients_are_eager_s_in_formats_that_are_no_integers(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], text: str
) -> None:
    quantized = wrapped(model, batches)
    trainable = TrainableModel(model, quantized)
    trainable.apply(uniform(quantized, text))
    trainable.module.train()
    batch = trainable.prepared(batches[0][0]), batches[0][1]
    expected = loss_gradients(trainable.module, batch)
    found = loss_gradients(partitioned(trainable.module), batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """What a forward pass allocated and has not freed at its end."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loss = forward()
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiled.key_averages())


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("text", ["w4a4", "w2a8", "wternaryaternary", "wbinaryabinary", "wfp16abf16"])
def test_training_keeps_no_more_than_the_float_model_and_a_mask(scheme: str, text: str) -> None:
    torch.manual_seed(0)
    model, images = MODELS["resnet20"](), torch.randn(16, 1, 28, 28)
    quantized = QuantizedModel(model.eval(), calibration=[(images, None)])
    trainable = TrainableModel(model, quantized, scheme=scheme)
    trainable.apply(uniform(quantized, text))
    trainable.module.train()
    images = trainable.prepared(images)
    floating = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    read = sum(len(images) * shape.numel() for shape in quantized.input_shapes.values())
    weights = sum(4 * quantized.float_weight(name).numel() for name in quantized.layers)
    of_float = kept_bytes(lambda: floating(images).sum())
    assert of_float > 6 * read
    # Quantized weights, and for some quantizers parts of them, do not grow with the batch.
    assert kept_bytes(lambda: trainable.module(images).sum()) <= of_float + read + 3 * weights


@pytest.mark.parametrize("scheme", ["lsq", "pact"])
def test_compiled_training_keeps_no_more_than_the_float_model(scheme: str) -> None:
    """Nor one tensor for a residual branch and one for the layer that quantizes it; and nothing breaks the graph."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), *(BasicBlock(8, 8, 1) for _ in range(2))).eval()
    images = torch.randn(16, 1, 28, 28)
    trainable = TrainableModel(model, quantized := QuantizedModel(model, calibration=[(images, None)]), scheme=scheme)
    trainable.apply(uniform(quantized, "w4a4"))
    trainable.module.train()
    floating = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    kept = []
    for module in (floating, trainable.module):
        compiled = partitioned(module)
        compiled(images).sum().backward()
        kept.append(kept_bytes(lambda forward=compiled: forward(images).sum()))
    weights = sum(4 * quantized.float_weight(name).numel() for name in quantized.layers)
    assert kept[1] <= kept[0] + 3 * weights


def test_gradients_may_be_asked_for_twice(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    quantized = wrapped(model, batches)
    trainable = TrainableModel(model, quantized)
    trainable.apply(uniform(quantized, "w3a3"))
    trainable.module.train()
    loss = F.cross_entropy(trainable(trainable.prepared(batches[0][0])), batches[0][1])
    parameters = [parameter for group in trainable.parameter_groups() for parameter in group]
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, parameters)))


def test_a_layer_whose_input_is_overwritten_says_so_like_torch() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y) + y.mul_(2.0) if self.training else self.second(y)

    model, x = Overwrites().eval(), torch.randn(8, 4)
    trainable = TrainableModel(model, quantized := QuantizedModel(model, calibration=[(x, None)]))
    trainable.apply(uniform(quantized, "w4a4"))
    trainable.module.train()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        trainable(x).sum().backward()


def test_state_goes_on_from_where_training_stopped(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    quantized = wrapped(model, batches)
    trainable = TrainableModel(model, quantized)
    policy = uniform(quantized, "w3a3")
    trainable.apply(policy)
    train(trainable, batches)
    reestimate_batch_norm(trainable)
    state, inputs = trainable.state(), trainable.prepared(batches[0][0])
    with torch.no_grad():
        expected = trainable(inputs)
        trainable.apply(policy)
        assert not torch.equal(trainable(inputs), expected)
        trainable.apply(policy, start=state)
        assert torch.equal(trainable(inputs), expected)


def test_folded_batch_norm_and_unknown_quantizers_are_refused(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    with pytest.raises(InputError, match=r"batch_norm = 'fold'.*'keep'"):
        TrainableModel(model, wrapped(model, batches, batch_norm="fold"))
    with pytest.raises(InputError, match=r"unknown quantizer 'guess'; known: dorefa, lsq"):
        TrainableModel(model, wrapped(model, batches), scheme="guess")


def test_convolutions_compute_in_channels_last_memory(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    quantized = wrapped(model, batches)
    trainable = TrainableModel(model, quantized)
    trainable.apply(uniform(quantized, "w4a4"))
    outputs: list[Tensor] = []
    stem = trainable.module.stem
    stem.register_forward_hook(lambda layer, _, output: outputs.append(output))
    trainable(trainable.prepared(batches[0][0]))
    for tensor in (stem.weight, *outputs):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
