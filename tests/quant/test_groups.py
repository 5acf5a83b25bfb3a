"""Group sizes as part of a weight's format: levels by hand, bytes as stored, through training, export and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import haq
from haq import InputError, Policy, Precision, QuantizedModel
from haq.export import export
from haq.hardware import build_cost_model, load_profile
from haq.hardware.packing import parameter_bytes, weight_bytes
from haq.quant.settings import QuantizationConfig
from haq.trace import trace
from haq.training import TrainableModel
from haq.values.formats import Format


def network() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, groups=2), nn.Flatten(), nn.Linear(6 * 49, 12)
    )


def inputs() -> torch.Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def quantized(model: nn.Module, **settings) -> QuantizedModel:
    return QuantizedModel(model, quantization=QuantizationConfig(**settings), calibration=[(inputs(), None)])


POLICY = {"0": "wint4_g8a8", "2": "wint3_g5a8", "4": "wint4_g32a8"}


def policy(**changes: str) -> Policy:
    return Policy({name: Precision.parse(text) for name, text in (POLICY | changes).items()})


def test_names_are_read_and_written() -> None:
    form = Format.parse("int4_g32")
    assert (form.bits, form.group_size, form.is_integer, form.is_float) == (4, 32, False, False)
    assert Format.parse("int4").group_size is None
    precision = Precision.parse("wint4_g128a8")
    assert (str(precision), precision.weight.name, precision.activation.name) == ("wint4_g128a8", "int4_g128", "int8")
    assert Precision.from_doc(precision.to_doc()) == precision


@pytest.mark.parametrize(
    "name", ["int4_g", "int4_g0", "int4_g1", "int4_g032", "int9_g32", "int1_g8", "fp16_g32", "int4_g123456"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"unknown number format .*int2 to int8 in groups of 2 to 99999, as in int4_g32"
    ):
        Format.parse(name)


def test_activations_have_no_groups() -> None:
    for build in (
        lambda: Precision.parse("w4aint4_g32"),
        lambda: Precision.from_doc({"weight_bits": 4, "activation_format": "int4_g32"}),
    ):
        with pytest.raises(ValueError, match="int4_g32 is a format of weights only: activations take int4"):
            build()


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize(
    ("layer", "form", "size"), [("0", "int4_g8", 8), ("4", "int3_g64", 64), ("4", "int8_g294", 294)]
)
def test_each_group_of_inputs_has_its_own_scale(layer: str, form: str, size: int, scheme: str) -> None:
    model = network()
    wrapped = quantized(model, weight_calibration="minmax", weight_scheme=scheme)
    got = wrapped.quantized_weight(layer, Format.parse(form)).flatten(1)
    bits = Format.parse(form).bits
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if scheme == "symmetric" else (0, 2**bits - 1)
    for row, levels in zip(model.get_submodule(layer).weight.detach().flatten(1), got, strict=True):
        for values, those in zip(row.split(size), levels.split(size), strict=True):
            least, greatest = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
            scale = (greatest - least) / high if scheme == "affine" else max(greatest / high, least / low)
            zero = round(-least / scale) if scheme == "affine" else 0
            expected = torch.fake_quantize_per_tensor_affine(values, scale, zero, low, high)
            torch.testing.assert_close(those, expected, rtol=1e-6, atol=1e-7)


def test_the_8_bit_blocks_of_llama_cpp() -> None:
    """Q8_0 is symmetric 8 bit in groups of 32 with a scale of max / 127; here -128 is used as well."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(96, 5))
    weight = model[0].weight.detach()
    with torch.no_grad():  # the largest of each group positive, so that both take max / 127
        for row in weight:
            for values in row.split(32):
                values[0] = 1.01 * values.abs().max()
    wrapped = QuantizedModel(
        model,
        quantization=QuantizationConfig(weight_calibration="minmax"),
        calibration=[(torch.randn(4, 96), None)],
    )
    ours = wrapped.weight_quantizer("0", Format.parse("int8_g32"))
    codes = ours.blocks[0].quantize(weight.reshape(-1, 32)).numpy()
    blocks = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0).reshape(-1, 34)
    np.testing.assert_array_equal(codes, blocks[:, 2:].view(np.int8))
    scales = blocks[:, :2].copy().view(np.float16)
    np.testing.assert_allclose(ours.blocks[0].scale.numpy(), scales, rtol=1e-3)


def test_an_error_of_groups_is_no_larger_the_finer_they_are() -> None:
    model = network()
    wrapped = quantized(model, weight_calibration="mse")
    weight = wrapped.float_weight("4")
    errors = [
        float((wrapped.quantized_weight("4", Format.parse(name)) - weight).square().sum())
        for name in ("int3_g7", "int3_g42", "int3_g294")
    ]
    assert errors == sorted(errors)
    torch.testing.assert_close(
        wrapped.quantized_weight("4", Format.parse("int3_g294")), wrapped.quantized_weight("4", Format.parse("int3"))
    )


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
def test_the_file_holds_the_bytes_that_are_predicted(tmp_path: Path, scheme: str) -> None:
    model = network()
    wrapped = quantized(model, weight_scheme=scheme)
    wrapped.apply(policy())
    path = tmp_path / "m.safetensors"
    export(wrapped, model, path, inputs=None, format="torch")
    with safe_open(str(path), framework="pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys() if ".weight_" in key}  # noqa: SIM118
    layers = {layer.name: layer for layer in trace(model, (inputs()[:1],)).layers}
    for name, layer in layers.items():
        form = policy()[name].weight
        predicted = weight_bytes(layer, form) + parameter_bytes(
            layer, form, granularity="tensor", group_size=1, scheme=scheme
        )
        held = sum(tensor.numel() * tensor.element_size() for key, tensor in stored.items() if key.startswith(name))
        assert held == predicted
    restored = haq.load_quantized(network(), path)
    with torch.no_grad():
        assert torch.equal(restored(inputs()), wrapped(inputs()))


def test_costs_count_every_scale() -> None:
    model = nn.Sequential(nn.Linear(100, 10))
    layers = trace(model, (torch.randn(1, 100),))
    device = build_cost_model(load_profile("nvidia_a100"))

    def cost(text: str):
        return device.layer_cost(layers.layers[0], Precision.parse(text))

    plain, grouped = cost("w4a4"), cost("wint4_g32afp16")
    assert grouped.size_bytes - plain.size_bytes == 4 * (10 * 4 - 10)  # 100 = 32 + 32 + 32 + 4: four scales, not one
    layer, form = layers.layers[0], Precision.parse("wint4_g32afp16")
    assert device.moved_bytes(layer, form)[0] == 500 + 160


@pytest.mark.parametrize("scheme", ["lsq", "ste"])
def test_groups_train_and_are_deployed_as_trained(tmp_path: Path, scheme: str) -> None:
    model = network()
    wrapped = quantized(model)
    trainable = TrainableModel(model, wrapped, scheme=scheme)
    for text in ("w4a8", "wint4_g16a8", "wint4_g64a8"):  # layouts change from one policy to the next, and back
        chosen = policy(**dict.fromkeys(POLICY, text))
        wrapped.apply(chosen)
        trainable.apply(chosen)
        with torch.no_grad():
            torch.testing.assert_close(trainable(trainable.prepared(inputs())), wrapped(inputs()), rtol=0, atol=1e-5)
    trainable.apply(policy())
    targets = torch.arange(6) % 12
    groups = [*trainable.parameter_groups()[0], *trainable.parameter_groups()[1]]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(trainable(trainable.prepared(inputs())), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trainable.bounded()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    trainable.module.eval()
    path = tmp_path / "m.safetensors"
    export(trainable, model, path, inputs=None, format="torch")
    with torch.no_grad():
        trained = trainable(trainable.prepared(inputs()))
        torch.testing.assert_close(haq.load_quantized(model, path)(inputs()), trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pack", [False, True])
def test_onnx_runtime_computes_the_same(tmp_path: Path, pack: bool) -> None:
    pytest.importorskip("onnxruntime")
    from haq.export import EXPORTERS, ExportOptions

    model = network()
    wrapped = quantized(model)
    wrapped.apply(policy())
    path = tmp_path / "m.onnx"
    export(wrapped, model, path, inputs=inputs(), format="onnx", options=ExportOptions(pack=pack))
    load = EXPORTERS["onnx"].load
    assert load is not None
    with torch.no_grad():
        expected = wrapped(inputs())
    torch.testing.assert_close(load(path, model)(inputs()), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("ort-overrides", "scale per group"),
        ("aimet", "int4_g8, a scale per group"),
        ("modelopt", "int4_g8, a scale per group"),
        ("torchao", "int4_g8, a scale per group"),
    ],
)
def test_what_cannot_say_groups_refuses_by_name(tmp_path: Path, format: str, message: str) -> None:
    model = network()
    wrapped = quantized(model)
    activations = "fp32" if format == "torchao" else "8"
    wrapped.apply(policy(**{name: f"{text[:-1]}{activations}" for name, text in POLICY.items()}))
    with pytest.raises(InputError, match=message):
        export(wrapped, model, tmp_path / "out.json", inputs=inputs(), format=format)
    assert not list(tmp_path.iterdir())


def test_a_linear_layer_s_groups_reach_the_tools_that_have_them(tmp_path: Path) -> None:
    import json

    model = nn.Sequential(nn.Linear(64, 8))
    wrapped = QuantizedModel(model, calibration=[(torch.randn(8, 64), None)])
    wrapped.apply(Policy({"0": Precision.parse("wint4_g32a8")}))
    for format, part in (("modelopt", '"block_sizes": {"-1": 32}'), ("torchao", '"group_size": 32')):
        path = tmp_path / f"{format}.json"
        export(wrapped, model, path, inputs=torch.randn(2, 64), format=format)
        assert part in json.dumps(json.loads(path.read_text()))
