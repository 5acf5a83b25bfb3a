"""Fine-tuned models as files: what the file computes against the trainable model that was scored."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import haq
from haq import InputError, Policy, Precision
from haq.evaluate import LOSSES
from haq.export import export
from haq.export.packing import Coding
from haq.training import FineTuner
from haq.training.settings import QATConfig

CASES = {
    "lsq": ("lsq", "w4a4"),
    "lsq at 8 bits": ("lsq", "w8a8"),
    "lsq at 2 bits": ("lsq", "w2a4"),
    "pact": ("pact", "w4a4"),
    "dorefa": ("dorefa", "w3a6"),
    "dorefa at 8 bits": ("dorefa", "w8a8"),
    "straight through": ("ste", "w4a8"),
    "ternary weights": ("lsq", "wternarya8"),
    "ternary": ("lsq", "wternaryaternary"),
    "binary weights": ("lsq", "wbinarya8"),
    "binary": ("lsq", "wbinaryabinary"),
    "floats": ("lsq", "wbf16afp16"),
    "float32": ("lsq", "wfp32afp32"),
}


@pytest.fixture(scope="session")
def fine_tune(digits, digits_cnn, quantize_digits):
    """A tuner that has trained a uniform policy for a few steps."""
    made = {}

    def train(quantizer: str, precision: str, *, ternary: str = "twn", **settings) -> FineTuner:
        key = (quantizer, precision, ternary, *sorted(settings.items()))
        if key not in made:
            quantized = quantize_digits(**settings)
            qat = QATConfig(quantizer=quantizer, ternary=ternary, steps=6, batch_size=32, learning_rate=0.02)
            tuner = FineTuner(digits_cnn, quantized, digits.train, settings=qat, loss=LOSSES["cross_entropy"])
            assert tuner.train(Policy.uniform(quantized.layers, Precision.parse(precision))) is None
            made[key] = tuner
        return made[key]

    return train


def outputs(tuner: FineTuner, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return tuner.model(tuner.model.prepared(images))


def assert_the_same(wanted: torch.Tensor, got: torch.Tensor, *, share: float) -> None:
    """The same classes, and outputs that differ by rounding; `share` of the largest one where a code flips."""
    assert 100.0 * float((wanted.argmax(1) == got.argmax(1)).double().mean()) >= 99.5
    assert float((wanted - got).abs().mean()) < 1e-3 * float(wanted.abs().max())
    assert float((wanted - got).abs().max()) < share * float(wanted.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_the_torch_file_restores_the_trained_model(tmp_path, fine_tune, digits_cnn, digits_images, case):
    tuner = fine_tune(*CASES[case])
    export(tuner.model, digits_cnn, tmp_path / "m.safetensors", inputs=None, format="torch")
    restored = haq.load_quantized(type(digits_cnn)(), tmp_path / "m.safetensors")
    for name in tuner.model.policy:
        wanted = tuner.model.module.get_submodule(name).weight
        torch.testing.assert_close(restored.get_submodule(name).weight, wanted, rtol=1e-6, atol=1e-7)
    for name, value in restored.named_buffers():
        assert torch.equal(value, tuner.model.module.get_buffer(name))
    with torch.no_grad():
        assert_the_same(outputs(tuner, digits_images), restored(digits_images), share=0.02)


@pytest.mark.parametrize("case", CASES)
def test_onnx_runtime_computes_the_trained_model(tmp_path, fine_tune, digits_cnn, digits_images, case):
    pytest.importorskip("onnxruntime")
    from haq.export.onnx.run import OnnxRunner

    tuner, path = fine_tune(*CASES[case]), tmp_path / "m.onnx"
    export(tuner.model, digits_cnn, path, inputs=digits_images[:2], format="onnx")
    assert_the_same(outputs(tuner, digits_images), OnnxRunner(path.read_bytes())(digits_images), share=0.05)


def test_no_bias_is_rounded_beside_16_bit_codes(tmp_path, fine_tune, digits_cnn, digits_images):
    onnx = pytest.importorskip("onnx")
    rounded = {}
    for quantizer in ("lsq", "dorefa"):
        tuner, path = fine_tune(quantizer, "w8a8"), tmp_path / f"{quantizer}.onnx"
        export(tuner.model, digits_cnn, path, inputs=digits_images[:2], format="onnx")
        rounded[quantizer] = {n.name for n in onnx.load(path).graph.node if n.name.endswith(".bias.dequantize")}
    assert rounded["lsq"]
    assert not rounded["dorefa"]  # 8-bit levels are codes of 9 bits, for which there are no integer kernels


@pytest.mark.parametrize(
    "settings",
    [{"weight_granularity": "group", "group_size": 10}, {"weight_granularity": "tensor", "weight_scheme": "affine"}],
    ids=["groups", "affine"],
)
def test_other_weight_settings(tmp_path, fine_tune, digits_cnn, digits_images, settings):
    tuner = fine_tune("lsq", "w4a8", **settings)
    export(tuner.model, digits_cnn, tmp_path / "m.safetensors", inputs=None, format="torch")
    restored = haq.load_quantized(digits_cnn, tmp_path / "m.safetensors")
    with torch.no_grad():
        assert_the_same(outputs(tuner, digits_images), restored(digits_images), share=0.02)


def test_training_changed_what_is_written(tmp_path, fine_tune, quantize_digits, digits_cnn):
    tuner, quantized = fine_tune("lsq", "w4a4"), quantize_digits()
    quantized.apply(tuner.model.policy)
    files = []
    for index, model in enumerate((tuner.model, quantized)):
        export(model, digits_cnn, tmp_path / f"{index}.safetensors", inputs=None, format="torch")
        files.append(safe_open(str(tmp_path / f"{index}.safetensors"), framework="pt"))
    for key in ("conv.weight_codes.0", "conv.weight_scale.0", "fc1.bias"):
        assert not torch.equal(files[0].get_tensor(key), files[1].get_tensor(key))
    steps = [json.loads(file.metadata()["haq"])["inputs"]["conv"]["scale"] for file in files]
    assert steps[0] != steps[1]


def test_codes_of_lsq_are_those_of_their_format_and_dorefas_are_odd(tmp_path, fine_tune, digits_cnn):
    found = {}
    for quantizer in ("lsq", "dorefa"):
        export(fine_tune(quantizer, "w3a6").model, digits_cnn, tmp_path / quantizer, inputs=None, format="torch")
        with safe_open(str(tmp_path / quantizer), framework="pt") as file:
            packing = json.loads(file.metadata()["haq"])["packed"]["conv"]
            coding = Coding(packing["bits"], packing["low"], packing["step"])
            codes = coding.unpack(file.get_tensor("conv.weight_codes.0"), tuple(packing["shapes"][0]))
            found[quantizer] = set(codes.flatten().tolist())
    assert found["lsq"] <= set(range(-4, 4))
    assert found["dorefa"] <= {-7, -5, -3, -1, 1, 3, 5, 7}


@pytest.mark.parametrize("format", ["aimet", "modelopt", "torchao"])
def test_configurations_have_the_trained_weights_beside_them(tmp_path, fine_tune, digits_cnn, format):
    tuner = fine_tune("lsq", "w4afp32" if format == "torchao" else "w4a8")
    export(tuner.model, digits_cnn, tmp_path / "m.json", inputs=None, format=format)
    model = type(digits_cnn)()
    model.load_state_dict(load_file(tmp_path / "m.safetensors"))
    for name in tuner.model.policy:
        assert torch.equal(model.get_submodule(name).weight, tuner.model.module.get_submodule(name).weight)


def test_aimet_gets_the_trained_steps(tmp_path, fine_tune, digits_cnn):
    export(fine_tune("lsq", "w4a8").model, digits_cnn, tmp_path / "m.json", inputs=None, format="aimet")
    encodings = json.loads((tmp_path / "m.json").read_text())["param_encodings"]["conv.weight"]
    weight = load_file(tmp_path / "m.safetensors")["conv.weight"].flatten(1)
    codes = weight / torch.tensor([entry["scale"] for entry in encodings]).unsqueeze(1)
    assert float((codes - codes.round()).abs().max()) < 1e-4
    assert (int(codes.round().min()), int(codes.round().max())) == (-8, 7)


@pytest.mark.parametrize(
    ("quantizer", "ternary", "precision", "format", "message"),
    [
        (
            "lsq",
            "ttq",
            "wternarya8",
            "torch",
            r"layer stem: trained ternary weights have a scale for each sign, .*'twn'",
        ),
        (
            "pact",
            "twn",
            "w4a8",
            "aimet",
            r"--format aimet: layer stem was trained on DoReFa's levels, .* onnx or torch",
        ),
        ("dorefa", "twn", "w4a8", "qonnx", r"--format qonnx: layer stem .* 4-bit integers cannot say"),
        (
            "dorefa",
            "twn",
            "w16a8",
            "onnx",
            r"--format onnx: layer stem .* 16-bit integers cannot say; use --format torch",
        ),
    ],
    ids=["ttq", "pact in aimet", "dorefa in qonnx", "16 bits of dorefa in onnx"],
)
def test_what_a_file_cannot_say_is_one_line(
    tmp_path, fine_tune, digits_cnn, digits_images, quantizer, ternary, precision, format, message
):
    pytest.importorskip("onnx")
    tuner = fine_tune(quantizer, precision, ternary=ternary)
    with pytest.raises(InputError, match=message) as error:
        export(tuner.model, digits_cnn, tmp_path / "m", inputs=digits_images[:2], format=format)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_configuration_must_not_take_the_place_of_the_weights(tmp_path, fine_tune, digits_cnn):
    with pytest.raises(InputError, match="is where the trained weights go"):
        export(fine_tune("lsq", "w4a8").model, digits_cnn, tmp_path / "m.safetensors", inputs=None, format="modelopt")


def test_qonnx_holds_the_trained_values(tmp_path, fine_tune, digits_cnn, digits_images):
    onnx = pytest.importorskip("onnx")
    tuner = fine_tune("lsq", "wternaryaternary")
    export(tuner.model, digits_cnn, tmp_path / "m.onnx", inputs=digits_images[:2], format="qonnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quant = {node.name: node for node in graph.node if node.op_type == "Quant"}
    wanted = tuner.model.module.get_submodule("conv").weight.detach()
    torch.testing.assert_close(torch.from_numpy(tensors[quant["conv.weight.quant"].input[0]].copy()), wanted)
    narrow = {entry.name: entry.i for entry in quant["conv.input.quant"].attribute}["narrow"]
    assert narrow == 1  # -1, 0 and 1, not -2
