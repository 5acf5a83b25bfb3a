import json
from pathlib import Path

import pytest
import torch
from export_models import MODELS, make, random_policy
from safetensors import safe_open
from torch import nn

import haq
from haq import InputError, Policy, Precision, QuantizedModel
from haq.export import export
from haq.quant import correct_bias, reestimate_batch_norm
from haq.quant.settings import QuantizationConfig

SETTINGS = [
    {},
    {"batch_norm": "fold"},
    {"weight_granularity": "group", "group_size": 10},
    {"weight_granularity": "tensor", "weight_scheme": "affine"},
    {"activation_scheme": "symmetric"},
]


def save(quantized: QuantizedModel, model: nn.Module, path: Path) -> Path:
    export(quantized, model, path, inputs=None, format="torch")
    return path


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_restored_outputs_are_equal_bit_for_bit(tmp_path, quantize_digits, digits_cnn, digits_images, settings, seed):
    quantized = quantize_digits(**settings)
    quantized.apply(random_policy(quantized.layers, seed))
    restored = haq.load_quantized(digits_cnn, save(quantized, digits_cnn, tmp_path / "m.safetensors"))
    with torch.no_grad():
        assert torch.equal(restored(digits_images), quantized(digits_images))


@pytest.mark.parametrize("name", MODELS)
def test_each_kind_of_layer_is_restored_into_an_untrained_model(tmp_path, name):
    model, inputs = make(name)
    settings = QuantizationConfig(batch_norm="fold", weight_granularity="group", group_size=5)
    quantized = QuantizedModel(model, quantization=settings, calibration=[(inputs, None)])
    quantized.apply(random_policy(quantized.layers, 5))
    path = save(quantized, model, tmp_path / "m.safetensors")
    torch.manual_seed(99)
    restored = haq.load_quantized(MODELS[name](), path)
    with torch.no_grad():
        assert torch.equal(restored(inputs), quantized(inputs))


def test_compensations_are_in_the_file(tmp_path, quantize_digits, digits_cnn, digits_images):
    quantized = quantize_digits()
    quantized.apply(Policy.uniform(quantized.layers, Precision.parse("w3a3")))
    with torch.no_grad():
        plain = quantized(digits_images)
    correct_bias(quantized)
    reestimate_batch_norm(quantized)
    restored = haq.load_quantized(digits_cnn, save(quantized, digits_cnn, tmp_path / "m.safetensors"))
    with torch.no_grad():
        assert torch.equal(restored(digits_images), quantized(digits_images))
        assert not torch.equal(restored(digits_images), plain)


def test_the_float_model_is_left_as_it_was(tmp_path, quantize_digits, digits_cnn, digits_images):
    with torch.no_grad():
        before = digits_cnn(digits_images)
    quantized = quantize_digits(batch_norm="fold")
    quantized.apply(Policy.uniform(quantized.layers, Precision.parse("w2a2")))
    haq.load_quantized(digits_cnn, save(quantized, digits_cnn, tmp_path / "m.safetensors"))
    with torch.no_grad():
        assert torch.equal(digits_cnn(digits_images), before)


def test_weights_are_stored_as_integers_of_their_range(tmp_path, quantize_digits, digits_cnn):
    quantized = quantize_digits()
    quantized.apply(Policy.uniform(quantized.layers, Precision.parse("w3a8")))
    path = save(quantized, digits_cnn, tmp_path / "m.safetensors")
    with safe_open(str(path), framework="pt") as file:
        codes = [file.get_tensor(name) for name in file.keys() if ".weight_codes." in name]  # noqa: SIM118
        document = json.loads(file.metadata()["haq"])
        assert not {f"{layer}.weight" for layer in quantized.layers} & set(file.keys())
    assert len(codes) == len(quantized.layers)
    assert {tensor.dtype for tensor in codes} == {torch.uint8}
    weights = {name: quantized.layers[name].weight.numel() for name in quantized.layers}
    assert sum(tensor.numel() for tensor in codes) == sum(-(-3 * count // 8) for count in weights.values())
    assert {(row["bits"], row["low"]) for row in document["packed"].values()} == {(3, -4)}
    assert Policy.from_doc(document["policy"]) == quantized.policy


def test_another_model_is_one_clear_line(tmp_path, quantize_digits, digits_cnn):
    quantized = quantize_digits()
    quantized.apply(Policy.uniform(quantized.layers, Precision.parse("w8a8")))
    path = save(quantized, digits_cnn, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="another model: Depthwise has no layer stem; build the arch") as error:
        haq.load_quantized(MODELS["Depthwise"](), path)
    assert "\n" not in str(error.value)


def test_another_width_is_one_clear_line(tmp_path, quantize_digits, digits_cnn):
    quantized = quantize_digits()
    quantized.apply(Policy.uniform(quantized.layers, Precision.parse("w8a8")))
    path = save(quantized, digits_cnn, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"layer fc2 has 192 weights here and 640 in the file"):
        haq.load_quantized(type(digits_cnn)(classes=3), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"12345678901234567890", "not a safetensors file")],
    ids=["missing", "garbage"],
)
def test_a_file_that_cannot_be_read(tmp_path, digits_cnn, content, message):
    path = tmp_path / "m.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        haq.load_quantized(digits_cnn, path)


def test_a_checkpoint_without_quantization(digits_cnn):
    from haq.zoo import CHECKPOINTS

    with pytest.raises(InputError, match="has no quantization in it; write it with haq export"):
        haq.load_quantized(digits_cnn, CHECKPOINTS / "digits_cnn.safetensors")


def test_a_float_model_is_not_exported(tmp_path, quantize_digits, digits_cnn):
    quantized = quantize_digits()
    quantized.apply(None)
    with pytest.raises(InputError, match="apply a policy first"):
        save(quantized, digits_cnn, tmp_path / "m.safetensors")
