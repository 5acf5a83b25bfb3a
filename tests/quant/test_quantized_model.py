"""The wrapped model: switching is exact, in place, and leaves the float model alone."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from haq.quant import QuantizedModel, correct_bias, reestimate_batch_norm, resolve
from haq.quant.settings import QuantizationConfig
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.policy import Policy


class Net(nn.Module):
    """Every kind of layer, one module called twice, one tensor read by two layers, one layer never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.line = nn.Conv1d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 6)
        self.spare = nn.Linear(3, 3)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = self.left(x) + self.depthwise(x)
        x = self.line(self.up(x).flatten(2)).mean(2)
        return self.fc(F.relu(self.fc(x)))


LAYERS = ("stem", "left", "depthwise", "up", "line", "fc")


def policy(*texts: str) -> Policy:
    names = [texts[i % len(texts)] for i in range(len(LAYERS))]
    return Policy({layer: Precision.parse(text) for layer, text in zip(LAYERS, names, strict=True)})


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for _ in range(5):
            net(torch.randn(16, 2, 6, 6))  # running statistics worth the name
    return net.eval()


@pytest.fixture
def batches() -> list:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 2, 6, 6, generator=generator), torch.zeros(8)) for _ in range(3)]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(2))


def test_default_layers_are_those_called_in_model_order(net, batches):
    assert tuple(QuantizedModel(net, calibration=batches).layers) == LAYERS


def test_float_policies_give_the_float_models_outputs_bit_for_bit(net, batches, x):
    model = QuantizedModel(net, calibration=batches)
    for wanted in (None, policy("wfp32afp32"), policy("w32a32")):
        model.apply(policy("w2a4", "wternarya8"))
        assert not torch.equal(model(x), net(x))
        model.apply(wanted)
        assert torch.equal(model(x), net(x))


def test_outputs_depend_on_the_policy_and_not_on_what_came_before(net, batches, x):
    model = QuantizedModel(net, calibration=batches)
    first, second = policy("w4a8", "w2a4"), policy("wfp16abf16", "wbinaryabinary", "w8a8")
    seen = []
    for wanted in (first, second, first, None, second):
        model.apply(wanted)
        seen.append(model(x))
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[4])
    fresh = QuantizedModel(net, calibration=batches)
    fresh.apply(second)
    assert torch.equal(fresh(x), seen[1])


def test_the_forward_pass_uses_torchs_fake_quantization(net, batches, x):
    model = QuantizedModel(net, calibration=batches)
    model.apply(policy("w4a8"))
    act, weight = (
        model.activation_quantizer("stem", Format.integer(8)),
        model.weight_quantizer("stem", Format.integer(4)),
    )
    (rows,) = weight.blocks
    expected = F.conv2d(
        torch.fake_quantize_per_tensor_affine(x, act.scale, act.zero_point, 0, 255),
        torch.fake_quantize_per_channel_affine(
            net.stem.weight, rows.scale.flatten(), rows.zero_point.flatten().int(), 0, -8, 7
        ),
        padding=1,
    )
    outputs = []
    model.layers["stem"].register_forward_hook(lambda module, args, output: outputs.append(output))
    model(x)
    assert torch.equal(outputs[0], expected)


def test_the_float_model_is_never_changed(net, batches, x):
    net.train()
    net.fc.register_forward_hook(lambda *_: None)
    before = copy.deepcopy(net.state_dict())
    parameters, hooks = dict(net.named_parameters()), {n: len(m._forward_pre_hooks) for n, m in net.named_modules()}
    model = QuantizedModel(net, calibration=batches, quantization=QuantizationConfig(batch_norm="fold"))
    model.apply(policy("w2a2"))
    model(x)
    assert net.training
    assert net.bn.training
    assert all(parameter is parameters[name] for name, parameter in net.named_parameters())
    assert {n: len(m._forward_pre_hooks) for n, m in net.named_modules()} == hooks
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_parameters_are_shared_and_each_quantized_weight_is_made_once(net, batches):
    model = QuantizedModel(net, calibration=batches)
    model.apply(None)
    assert model.module.get_parameter("stem.weight") is net.stem.weight
    model.apply(policy("w4a8"))
    made = model.layers["stem"].weight
    model.apply(policy("w2a8"))
    model.apply(policy("w4afp32"))
    assert model.layers["stem"].weight is made
    assert torch.equal(model.quantized_weight("stem", Format.integer(4)), made)


def test_one_layer_can_be_switched_alone(net, batches, x):
    model = QuantizedModel(net, calibration=batches)
    model.apply(None)
    model.set_precision("left", Precision.parse("w2a4"))
    alone = model(x)
    expected = {**policy("wfp32afp32"), "left": Precision.parse("w2a4")}
    assert model.policy == Policy(expected)
    model.apply(Policy(expected))
    assert torch.equal(model(x), alone)
    model.set_precision("left", None)
    assert model.policy is None
    assert torch.equal(model(x), net(x))


def test_a_module_called_twice_has_one_range_over_both_calls(net, batches):
    reads = []
    net.fc.register_forward_pre_hook(lambda module, args: reads.append(args[0]))
    with torch.no_grad():
        for inputs, _ in batches:
            net(inputs)
    model = QuantizedModel(net, calibration=batches, quantization=QuantizationConfig(activation_calibration="minmax"))
    quantizer = model.activation_quantizer("fc", Format.integer(8))
    low, high = min(float(x.min()) for x in reads), max(float(x.max()) for x in reads)
    assert quantizer.scale == pytest.approx((high - low) / 255, rel=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_tensor_read_twice_and_changed_in_between_is_quantized_anew(mode):
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = x.clone()
            first, second = self.a(x), self.b(x)
            x.mul_(-2.0)
            return first + second + self.c(x)

    torch.manual_seed(0)
    net, data = Shared().eval(), torch.randn(64, 4)
    model = QuantizedModel(net, calibration=[(data, data)])
    model.apply(Policy.uniform("abc", Precision.parse("w8a8")))
    read = {name: model.activation_quantizer(name, Format.integer(8)) for name in "abc"}
    with mode():
        result = model(data)
        expected = sum(
            F.linear(read[name](value), model.quantized_weight(name, Format.integer(8)), getattr(net, name).bias)
            for name, value in (("a", data), ("b", data), ("c", -2.0 * data))
        )
    torch.testing.assert_close(result, expected)


def test_a_policy_for_another_model_lists_what_does_not_fit(net, batches):
    model = QuantizedModel(net, calibration=batches)
    wrong = Policy.uniform(["stem", "left", "up", "line", "fc", "head"], Precision.parse("w8a8"))
    with pytest.raises(InputError, match="missing depthwise; unknown head"):
        model.apply(wrong)


def test_input_errors_name_the_remedy(net, batches):
    with pytest.raises(InputError, match="no calibration data; give at least one batch"):
        QuantizedModel(net, calibration=[])
    with pytest.raises(InputError, match="never called on the calibration data: spare; leave them out"):
        QuantizedModel(net, calibration=batches, layers=["stem", "spare"])
    with pytest.raises(InputError, match=r"not a nn.Conv1d, .* of the model: bn; it has stem, "):
        QuantizedModel(net, calibration=batches, layers=["bn"])
    with pytest.raises(InputError, match="layer 'stem': its input is not finite"):
        QuantizedModel(net, calibration=[(torch.full((2, 2, 6, 6), float("inf")), None)])
    with pytest.raises(InputError, match="no quantized layer 'spare'; the model has stem"):
        QuantizedModel(net, calibration=batches).quantized_weight("spare", Format.integer(8))
    with pytest.raises(InputError, match="nothing to quantize"):
        QuantizedModel(nn.ReLU(), calibration=batches)


def test_inputs_may_be_a_tuple_or_a_dict():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, a, b):
            return {"sum": self.fc(input=a + b), "a": a}

    net, a, b = Two().eval(), torch.randn(5, 4), torch.randn(5, 4)
    for inputs in ((a, b), {"a": a, "b": b}):
        model = QuantizedModel(net, calibration=[(inputs, None)])
        assert torch.equal(model(inputs)["sum"], net(a, b)["sum"])
        model.apply(Policy.uniform(["fc"], Precision.parse("w8a4")))
        read = model.activation_quantizer("fc", Format.integer(4))(a + b)
        expected = F.linear(read, model.quantized_weight("fc", Format.integer(8)), net.fc.bias)
        assert torch.equal(model(inputs)["sum"], expected)


def test_forward_hooks_see_quantized_inputs_and_subclasses_keep_their_forward(x):
    class Doubling(nn.Conv2d):
        def forward(self, input):
            return 2.0 * super().forward(input)

    net = nn.Sequential(Doubling(2, 3, 1)).eval()
    model = QuantizedModel(net, calibration=[(x, None)])
    model.apply(Policy.uniform(["0"], Precision.parse("w4a2")))
    seen = []
    model.layers["0"].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    weight = model.quantized_weight("0", Format.integer(4))
    assert torch.equal(model(x), 2.0 * F.conv2d(seen[0], weight, net[0].bias))
    assert len(seen[0].unique()) <= 4


def test_copies_and_pickles_switch_on_their_own(net, batches, x):
    model = QuantizedModel(net, calibration=batches)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
        other.apply(policy("w4a4"))
        result = other(x)
        assert torch.equal(model(x), net(x))
        model.apply(policy("w4a4"))
        assert torch.equal(model(x), result)
        model.apply(None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_types_keep_their_type_and_few_levels(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 4)).eval().to(dtype)
    data = torch.randn(32, 16, dtype=dtype)
    model = QuantizedModel(net, calibration=[(data, None)])
    model.apply(Policy.uniform(["0"], Precision.parse("w4a4")))
    assert model(data).dtype == dtype
    weight = model.quantized_weight("0", Format.integer(4))
    assert max(len(row.unique()) for row in weight) <= 16
    assert len(model.activation_quantizer("0", Format.integer(4))(data).unique()) <= 16
    assert (weight - net[0].weight).abs().max() < 0.1 * net[0].weight.abs().max()
    model.apply(None)
    assert torch.equal(model(data), net(data))


def test_channels_last_weights_stay_channels_last(net, batches):
    model = QuantizedModel(net.to(memory_format=torch.channels_last), calibration=batches)
    assert model.quantized_weight("stem", Format.integer(4)).is_contiguous(memory_format=torch.channels_last)


def test_settings_come_from_the_experiment_then_the_device_then_the_defaults():
    device = QuantizationConfig(weight_granularity="tensor", activation_scheme="symmetric")
    resolved = resolve(QuantizationConfig(weight_granularity="group"), device)
    assert resolved.weight_granularity == "group"
    assert resolved.activation_scheme == "symmetric"
    assert resolved.weight_calibration == "balanced"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("batch_norm", ["fold", "reestimate"])
def test_on_cuda_the_outputs_are_the_cpus_and_the_float_model_stays(net, batches, x, batch_norm):
    settings = QuantizationConfig(batch_norm=batch_norm)
    outputs = []
    for device in ("cpu", "auto"):
        model = QuantizedModel(net, calibration=batches, quantization=settings, device=device)
        model.apply(policy("w4a8", "wternaryaternary", "wfp16abinary"))
        correct_bias(model)
        if batch_norm == "reestimate":
            reestimate_batch_norm(model)
        outputs.append(model(model.to_device(x)).cpu())
    assert net.stem.weight.device.type == "cpu"
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0.05, atol=0.05)


def test_layers_that_share_a_weight_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with pytest.raises(InputError, match="layer '0': its weight is also that of 2; call one module several times"):
        QuantizedModel(model, calibration=[(torch.randn(8, 4), None)])


def test_of_a_hugging_face_output_the_scores_count():
    from haq.quant.nested import scores_of

    class Output(dict):
        def to_tuple(self):
            return tuple(self.values())

    hidden, logits = torch.zeros(2, 3), torch.ones(2, 4)
    assert scores_of(Output(hidden=hidden, logits=logits)) is logits
    assert scores_of(Output(loss=None, hidden=hidden)) is hidden
    plain = {"hidden": hidden, "logits": logits}
    assert scores_of(plain) is plain
