import random

import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from export_models import MODELS, make, random_policy, saturating  # noqa: E402
from onnx import TensorProto, numpy_helper  # noqa: E402

from haq import InputError, Policy, Precision, QuantizedModel  # noqa: E402
from haq.export import capture  # noqa: E402
from haq.export.onnx.model import onnx_model  # noqa: E402
from haq.export.onnx.run import INTEGER_KERNELS, OnnxRunner, kernels  # noqa: E402
from haq.quant import reestimate_batch_norm  # noqa: E402
from haq.quant.settings import QuantizationConfig  # noqa: E402

SETTINGS = [
    {},
    {"batch_norm": "fold"},
    {"weight_scheme": "affine"},
    {"activation_scheme": "symmetric"},
    {"weight_granularity": "tensor"},
    {"weight_granularity": "group", "group_size": 10},
    {"weight_granularity": "group", "group_size": 32},
]


def exported(quantized, model, inputs, *, pack: bool = False) -> bytes:
    return onnx_model(model, capture(quantized), inputs[:2], pack=pack).SerializeToString()


def exported_for_speed(quantized, model, inputs) -> bytes:
    return onnx_model(model, capture(quantized), inputs, integer_outputs=True).SerializeToString()


def uniform(quantized, precision: str) -> Policy:
    return Policy.uniform(quantized.layers, Precision.parse(precision))


def agreement(wanted, got) -> float:
    return 100.0 * float((wanted.argmax(1) == got.argmax(1)).double().mean())


@pytest.mark.parametrize("seed", [10, 11, 13])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_random_policies_on_digits(quantize_digits, digits_cnn, digits_images, digits_labels, settings, seed):
    quantized = quantize_digits(**settings)
    quantized.apply(random_policy(quantized.layers, seed))
    with torch.no_grad():
        wanted = quantized(digits_images)
    serialized = exported(quantized, digits_cnn, digits_images, pack=seed == 11)
    for optimize in (True, False):
        got = OnnxRunner(serialized, optimize=optimize)(digits_images)
        assert agreement(wanted, got) >= 99.5
        right = [int((outputs.argmax(1) == digits_labels).sum()) for outputs in (wanted, got)]
        assert abs(right[0] - right[1]) <= 1  # one image of 719 is 0.14 points
        assert float((got - wanted).abs().mean()) < 2e-3 * float(wanted.abs().max())


@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w4a4", "w2a2", "wternarya4", "wbinarya8", "wfp16afp16"])
def test_uniform_policies_on_digits(quantize_digits, digits_cnn, digits_images, precision):
    quantized = quantize_digits()
    quantized.apply(uniform(quantized, precision))
    with torch.no_grad():
        wanted = quantized(digits_images)
    got = OnnxRunner(exported(quantized, digits_cnn, digits_images))(digits_images)
    assert agreement(wanted, got) >= 99.5
    assert float((got - wanted).abs().mean()) < 1e-3 * float(wanted.abs().max())


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[1], SETTINGS[2], SETTINGS[5]], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_each_kind_of_layer(name, settings):
    model, inputs = make(name)
    quantized = QuantizedModel(model, quantization=QuantizationConfig(**settings), calibration=[(inputs, None)])
    for precision, optimize in (("w8a8", True), ("w4a6", False), ("w4a6", True), ("wternarya16", True)):
        quantized.apply(uniform(quantized, precision))
        with torch.no_grad():
            wanted = quantized(inputs)
        got = OnnxRunner(exported(quantized, model, inputs), optimize=optimize)(inputs)
        # Sums in another order now and then move a value over a rounding boundary, by one step.
        assert float((got - wanted).abs().mean()) < 2e-3 * float(wanted.abs().max())


@pytest.mark.parametrize("name", ["9", "12", "16", "fp16", "bf16", "ternary", "binary", "1", "3"])
def test_activation_formats_are_exact(name):
    """One layer that copies its input: what comes out is the quantized input itself."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1, bias=False))
    torch.nn.init.ones_(model[0].weight)
    inputs = torch.randn(64, 1, 8, 8)
    quantized = QuantizedModel(model, calibration=[(inputs, None)])
    quantized.apply(Policy({"0": Precision.parse(f"wfp32a{name}")}))
    got = OnnxRunner(exported(quantized, model, inputs))(inputs)
    with torch.no_grad():
        torch.testing.assert_close(got, quantized(inputs), rtol=1e-6, atol=1e-7)


def weight_tensors(model: bytes, layer: str):
    """The initializers of a layer's codes and scale, found through its DequantizeLinear."""
    graph = onnx.load_from_string(model).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    node = next(node for node in graph.node if node.name == f"{layer}.weight.dequantize")
    return [tensors[name] for name in node.input[:2]]


@pytest.mark.parametrize(
    ("precision", "pack", "data_type", "low", "high"),
    [
        ("w8a8", False, TensorProto.UINT8, 0, 255),
        ("w8a7", False, TensorProto.INT8, -128, 127),
        ("w7a8", False, TensorProto.INT8, -64, 63),
        ("w5a8", False, TensorProto.INT8, -16, 15),
        ("w4a8", False, TensorProto.INT8, -8, 7),
        ("w4a8", True, TensorProto.INT4, -8, 7),
        ("w2a8", True, TensorProto.INT4, -2, 1),
        ("wternarya8", True, TensorProto.INT8, -1, 1),
        ("wbinarya8", False, TensorProto.INT8, -1, 1),
        ("w12a8", False, TensorProto.INT16, -2048, 2047),
    ],
)
def test_weights_are_integer_initializers(
    quantize_digits, digits_cnn, digits_images, precision, pack, data_type, low, high
):
    quantized = quantize_digits(batch_norm="fold")
    quantized.apply(uniform(quantized, precision))
    model = exported(quantized, digits_cnn, digits_images, pack=pack)
    for layer in quantized.layers:
        codes, scale = weight_tensors(model, layer)
        values = numpy_helper.to_array(codes).astype(int)
        offset = 128 if codes.data_type == TensorProto.UINT8 else 0
        assert codes.data_type == data_type
        assert values.min() >= low
        assert values.max() <= high
        wanted = quantized.quantized_weight(layer, Precision.parse(precision).weight)
        wanted = wanted.t() if wanted.dim() == 2 else wanted
        axis = [1, -1] if wanted.dim() == 2 else [-1] + [1] * (wanted.dim() - 1)
        dequantized = torch.from_numpy((values - offset) * numpy_helper.to_array(scale).reshape(axis)).float()
        assert torch.equal(dequantized, wanted)


@pytest.mark.parametrize("precision", ["w8a8", "w8a7", "w7a8", "w4a8"])
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["positive", "negative"])
@pytest.mark.parametrize("integer_outputs", [False, True])
def test_no_kernel_saturates(precision, sign, integer_outputs):
    """On processors without VNNI this fails wherever a kernel adds two such products in 16 bits."""
    model, x = saturating(sign)
    quantized = QuantizedModel(model, calibration=[(x, None)])
    quantized.apply(uniform(quantized, precision))
    blob = onnx_model(model, capture(quantized), x, integer_outputs=integer_outputs).SerializeToString()
    exact = OnnxRunner(blob, optimize=False)(x)
    got = OnnxRunner(blob)(x)
    assert float((got - exact).abs().max()) < 2e-2 * float(exact.abs().max())


def test_packed_weights_halve_the_file(quantize_digits, digits_cnn, digits_images):
    quantized = quantize_digits()
    quantized.apply(uniform(quantized, "w4a8"))
    sizes = [len(exported(quantized, digits_cnn, digits_images, pack=pack)) for pack in (False, True)]
    weights = sum(module.weight.numel() for module in quantized.layers.values())
    assert sizes[0] - sizes[1] == pytest.approx(weights / 2, rel=0.05)


@pytest.mark.parametrize("batch_norm", ["keep", "fold"])
def test_convolutions_between_quantized_tensors_run_as_integers(quantize_digits, digits_cnn, digits_images, batch_norm):
    quantized = quantize_digits(batch_norm=batch_norm)
    quantized.apply(uniform(quantized, "w8a8"))
    ran = kernels(exported(quantized, digits_cnn, digits_images), quantized.layers)
    # What is added to another tensor, or pooled before it is quantized, stays in float, as in the torch model.
    assert {name for name, kind in ran.items() if kind == "QLinearConv"} >= {"depthwise", "down"}
    assert ran["fc1"] in INTEGER_KERNELS
    assert ran["fc2"] in INTEGER_KERNELS
    assert set(ran) == set(quantized.layers)


def test_with_integer_outputs_all_8_bit_layers_run_as_integers(quantize_digits, digits_cnn, digits_images):
    quantized = quantize_digits()
    quantized.apply(uniform(quantized, "w8a8"))
    serialized = exported_for_speed(quantized, digits_cnn, digits_images)
    assert set(kernels(serialized, quantized.layers).values()) <= set(INTEGER_KERNELS)
    with torch.no_grad():
        wanted = quantized(digits_images)
    assert agreement(wanted, OnnxRunner(serialized)(digits_images)) >= 99.0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_integer_outputs_are_near_what_was_searched(name, seed):
    model, inputs = make(name)
    quantized = QuantizedModel(model, calibration=[(inputs, None)])
    rng = random.Random(seed)
    quantized.apply(Policy({layer: Precision.parse(rng.choice(("w8a8", "wfp32afp32"))) for layer in quantized.layers}))
    with torch.no_grad():
        wanted = quantized(inputs)
    serialized = exported_for_speed(quantized, model, inputs)
    for optimize in (True, False):
        got = OnnxRunner(serialized, optimize=optimize)(inputs)
        assert float((got - wanted).abs().mean()) < 1e-2 * float(wanted.abs().max())


def test_low_bit_convolutions_are_clipped_codes_of_integer_kernels():
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(8, 8, 3, padding=1, bias=False), torch.nn.ReLU6(), torch.nn.Conv2d(8, 4, 3)
    )
    inputs = torch.randn(32, 8, 10, 10)
    quantized = QuantizedModel(model, calibration=[(inputs, None)])
    quantized.apply(uniform(quantized, "w4a4"))
    serialized = exported(quantized, model, inputs)
    assert kernels(serialized, quantized.layers)["0"] == "QLinearConv"
    with torch.no_grad():
        wanted = quantized(inputs)
    assert float((OnnxRunner(serialized)(inputs) - wanted).abs().mean()) < 1e-3 * float(wanted.abs().max())


def test_float_layers_stay_float_between_quantized_ones(quantize_digits, digits_cnn, digits_images):
    quantized = quantize_digits()
    policy = dict(uniform(quantized, "w8a8")) | {"down": Precision.parse("wfp32afp32")}
    quantized.apply(Policy(policy))
    ran = kernels(exported(quantized, digits_cnn, digits_images), quantized.layers)
    assert ran.get("down", "Conv") not in INTEGER_KERNELS


def test_reestimated_batch_norm_is_exported(quantize_digits, digits_cnn, digits_images):
    quantized = quantize_digits()
    quantized.apply(uniform(quantized, "w3a3"))
    with torch.no_grad():
        plain = quantized(digits_images)
        reestimate_batch_norm(quantized)
        wanted = quantized(digits_images)
    got = OnnxRunner(exported(quantized, digits_cnn, digits_images))(digits_images)
    assert float((got - wanted).abs().mean()) < 0.05 * float((plain - wanted).abs().mean())


def test_a_shared_tensor_is_quantized_once():
    model, inputs = make("Branches")
    quantized = QuantizedModel(model, calibration=[(inputs, None)])
    quantized.apply(uniform(quantized, "w8a8"))
    graph = onnx.load_from_string(exported(quantized, model, inputs)).graph
    # The shared input, the twice called layer's two inputs, and the last layer's.
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 4


def test_named_inputs_and_several_outputs():
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(6, 3), torch.nn.Linear(4, 3)

        def forward(self, x, y):
            return self.a(x), {"sum": self.a(x) + self.b(y)}

    torch.manual_seed(1)
    model, inputs = Two(), {"y": torch.randn(16, 4), "x": torch.randn(16, 6)}
    quantized = QuantizedModel(model, calibration=[(inputs, None)])
    quantized.apply(uniform(quantized, "w8a8"))
    serialized = onnx_model(model, capture(quantized), {k: v[:2] for k, v in inputs.items()}).SerializeToString()
    with torch.no_grad():
        first, second = quantized(inputs)
    got = OnnxRunner(serialized)(inputs)
    torch.testing.assert_close(got[0], first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[1], second["sum"], rtol=1e-4, atol=1e-5)


def test_an_operator_that_onnx_lacks_is_one_clear_line():
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(4, 4)

        def forward(self, x):
            return torch.special.bessel_j0(self.fc(x))

    model, inputs = Odd(), torch.randn(8, 4)
    quantized = QuantizedModel(model, calibration=[(inputs, None)])
    quantized.apply(uniform(quantized, "w8a8"))
    with pytest.raises(
        InputError, match=r"Odd cannot be exported to ONNX: .*bessel_j0.*replace that operator"
    ) as error:
        exported(quantized, model, inputs)
    assert "\n" not in str(error.value)


def test_padding_moves_into_the_convolutions():
    model, inputs = make("Padded")
    quantized = QuantizedModel(model, calibration=[(inputs, None)])
    quantized.apply(uniform(quantized, "w8a8"))
    found = exported(quantized, model, inputs)
    assert "Pad" not in {node.op_type for node in onnx.load_from_string(found).graph.node}
    quantized.apply(uniform(quantized, "w8abinary"))  # padding is not -1 or 1
    with torch.no_grad():
        wanted = quantized(inputs)
    torch.testing.assert_close(OnnxRunner(exported(quantized, model, inputs))(inputs), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dead", [0.0, 1e-9], ids=["zero", "nearly zero"])
def test_dead_channels_do_not_keep_a_layer_from_integers(dead):
    """As in EfficientNet: a channel without weights, whose bias is not a number of steps of its own."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)
    )
    with torch.no_grad():
        model[2].weight[1] *= dead
        model[2].bias[1] = 0.7
    inputs = torch.randn(64, 3, 8, 8)
    quantized = QuantizedModel(model, calibration=[(inputs, None)])
    quantized.apply(uniform(quantized, "w8a8"))
    found = exported_for_speed(quantized, model, inputs)
    assert set(kernels(found, quantized.layers).values()) == {"QLinearConv"}
    with torch.no_grad():
        wanted = quantized(inputs)
    assert float((OnnxRunner(found)(inputs) - wanted).abs().mean()) < 5e-3 * float(wanted.abs().max())


@pytest.mark.parametrize(("activation", "integer"), [("8", True), ("2", False), ("binary", False)])
def test_no_bias_is_rounded_where_activations_of_few_bits_would_amplify_it(
    quantize_digits, digits_cnn, digits_images, activation, integer
):
    quantized = quantize_digits(batch_norm="fold")
    policy = uniform(quantized, "w8a8").precisions | {"fc2": Precision.parse(f"w8a{activation}")}
    quantized.apply(Policy(policy))
    graph = onnx.load_from_string(exported(quantized, digits_cnn, digits_images)).graph
    assert any(node.name.endswith(".bias.dequantize") for node in graph.node) == integer


def pooled() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d((3, 2)), torch.nn.Conv2d(8, 4, 1))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(pooled(), id="an adaptive pool that does not divide"),
        pytest.param(torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))), id="DataParallel"),
    ],
)
def test_what_the_torchscript_exporter_refuses_is_exported_all_the_same(model, capfd):
    pytest.importorskip("onnxscript")
    model, x = model.eval(), torch.randn(6, 3, 9, 9)
    quantized = QuantizedModel(model, calibration=[(x, None)])
    quantized.apply(uniform(quantized, "w8a8"))
    blob = exported(quantized, model, x)
    for count in (6, 1):
        wanted = quantized(x[:count]).detach()
        assert float((OnnxRunner(blob)(x[:count]) - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())
    printed = capfd.readouterr()
    assert len(printed.out.splitlines() + printed.err.splitlines()) <= 2
