"""Files for other tools: loaded by the tool itself where it is installed, and read back as the same policy."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")
from export_models import make

from haq import InputError, Policy, Precision, QuantizedModel
from haq.export import export
from haq.export.interchange.read import foreign_policy
from haq.quant.settings import QuantizationConfig
from haq.trace import trace

INTEGERS = [f"w{w}a{a}" for w in (2, 3, 4, 8) for a in (4, 8)]


def mixed(layers, precisions) -> Policy:
    return Policy({name: Precision.parse(precisions[i % len(precisions)]) for i, name in enumerate(layers)})


@pytest.fixture
def written(tmp_path, quantize_digits, digits_cnn, digits_images):
    def write(format, precisions, **settings):
        quantized = quantize_digits(**settings)
        policy = mixed(quantized.layers, precisions)
        quantized.apply(policy)
        path = tmp_path / f"{format}.json"
        export(quantized, digits_cnn, path, inputs=digits_images[:2], format=format)
        network = trace(digits_cnn, (digits_images[:1],))
        return SimpleNamespace(path=path, policy=policy, quantized=quantized, model=digits_cnn, network=network)

    return write


@pytest.mark.parametrize("format", ["modelopt", "aimet"])
@pytest.mark.parametrize("precisions", [INTEGERS, ["w8a8", "wfp32afp32", "w4afp32"]], ids=["integers", "with float"])
def test_a_policy_comes_back(written, format, precisions):
    file = written(format, precisions)
    assert foreign_policy(json.loads(file.path.read_text()), file.network) == file.policy


def test_the_older_form_of_model_optimizer_is_read(written):
    network = written("modelopt", ["w8a8"]).network
    document = {"quant_cfg": {"*weight_quantizer": {"num_bits": 4, "axis": 0}, "*input_quantizer": {"enable": False},
                              "fc2.weight_quantizer": {"enable": False}}}  # fmt: skip
    found = foreign_policy(document, network)
    assert str(found["stem"]) == "w4afp32"
    assert str(found["fc2"]) == "wfp32afp32"


def test_entries_for_a_class_are_for_that_class_alone(written):
    network = written("modelopt", ["w8a8"]).network
    entries = [{"quantizer_name": "*", "parent_class": "nn.Linear", "cfg": {"num_bits": 4}}]
    found = foreign_policy({"quant_cfg": entries}, network)
    assert (str(found["stem"]), str(found["fc1"])) == ("w8a8", "w4a4")


def test_encodings_of_what_is_written_are_what_is_read(written):
    network = written("aimet", ["w8a8"]).network
    weights = {f"{name}.weight": [{"bitwidth": 4, "dtype": "int"}] for name in network.layer_names}
    outputs = {name: {"output": {"0": {"bitwidth": bits, "dtype": "int"}}} for name, bits in (("stem", 8), ("conv", 4))}
    outputs["stem"]["input"] = {"0": {"bitwidth": 8, "dtype": "int"}}
    with pytest.raises(ValueError, match="nothing for the input of pointwise"):
        foreign_policy({"param_encodings": weights, "activation_encodings": outputs}, network)
    outputs["pointwise"] = outputs["down"] = outputs["fc1"] = {"output": outputs["stem"]["output"]}
    outputs["depthwise"] = outputs["stem"]
    found = foreign_policy({"param_encodings": weights, "activation_encodings": outputs}, network)
    assert (str(found["stem"]), str(found["fc1"])) == ("w4a8", "w4a4")  # fc1 reads what conv wrote


def test_later_versions_of_encodings_are_lists(written):
    network = written("aimet", ["w8a8"]).network
    parameters = [{"name": f"{name}.weight", "bw": 4, "dtype": "INT"} for name in network.layer_names]
    document = {"version": "1.0.0", "param_encodings": parameters,
                "activation_encodings": [{"name": "/relu/Relu_output_0", "bw": 8, "dtype": "INT"}]}  # fmt: skip
    assert foreign_policy(document, network) == Policy.uniform(network.layer_names, Precision.parse("w4a8"))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"quant_cfg": 3}, "expected a list of entries"),
        ({"quant_cfg": [{"quantizer_name": "*", "cfg": {"num_bits": [4, 3]}}]}, "num_bits = .* is no integer format"),
        ({"quant_cfg": [{"quantizer_name": "*", "cfg": [{"num_bits": 4}]}]}, "several formats in a row"),
        ({"param_encodings": [1]}, "list of objects with a name"),
        ({"param_encodings": {"stem.weight": [7]}}, r"param_encodings\.stem\.weight: expected an encoding"),
    ],
    ids=["no list", "fp8", "two formats", "no names", "no encoding"],
)
def test_what_cannot_be_read_is_one_line(written, document, message):
    network = written("aimet", ["w8a8"]).network
    with pytest.raises(ValueError, match=message):
        foreign_policy(document, network)


@pytest.mark.parametrize(
    ("format", "precision", "message"),
    [
        ("modelopt", "wternarya8", "layer stem has ternary, which it cannot say"),
        ("torchao", "w9a8", "layer stem has int9, .* int1 to int8"),
        ("torchao", "w4a8", "stem reads int8; torchao quantizes activations to int8 in linear layers only"),
        ("torchao", "wfp32a8", "stem has float weights and reads int8"),
        ("aimet", "w4abinary", "layer stem has binary"),
        ("ort-overrides", "w4a6", "stem reads int6; .* activations of 4, 8 and 16 bits"),
        ("ort-overrides", "wfp32a8", "quantizes both or none"),
        ("qonnx", "wfp16a8", "layer stem has fp16 weights"),
        ("qonnx", "w8aternary", "layer stem reads ternary activations"),
    ],
)
def test_what_a_tool_cannot_say_is_refused(written, format, precision, message):
    with pytest.raises(InputError, match=message):
        written(format, [precision])


@pytest.mark.parametrize("batch_norm", ["keep", "fold"])
@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
def test_onnx_runtime_quantizes_to_the_same_model(written, digits_images, tmp_path, batch_norm, scheme):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    from haq.export.interchange.ort_overrides import load_overrides
    from haq.export.onnx.run import OnnxRunner

    file = written("ort-overrides", ["w8a8", "w3a8", "w4a16", "w8a8"], batch_norm=batch_norm, weight_scheme=scheme)

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"input": digits_images[:32].numpy()}])

        def get_next(self):
            return next(self.batches, None)

    out = tmp_path / "quantized.onnx"
    quantize_static(model_output=str(out), calibration_data_reader=Reader(), **load_overrides(file.path))
    got = OnnxRunner(out.read_bytes())(digits_images)
    with torch.no_grad():
        wanted = file.quantized(digits_images)
    assert float((wanted.argmax(1) == got.argmax(1)).double().mean()) >= 0.995
    assert float((wanted - got).abs().mean()) < 5e-3 * float(wanted.abs().max())


def test_torchao_takes_its_configuration(written, digits_images):
    config = pytest.importorskip("torchao.core.config")
    from torchao.quantization import quantize_

    quantize = QuantizedModel(*_tokens()[:1], calibration=[(_tokens()[1], None)])
    model, inputs = _tokens()
    policy = mixed(quantize.layers, ["w4a8", "w3afp32", "wfp32afp32"])
    quantize.apply(policy)
    path = written("torchao", ["w4afp32"]).path
    export(quantize, model, path, inputs=inputs[:2], format="torchao")
    found = config.config_from_dict(json.loads(path.read_text()))
    quantize_(model, found, filter_fn=None)
    kinds = {name: str(getattr(model.get_submodule(name).weight, "target_dtype", None)) for name in quantize.layers}
    assert list(kinds.values()) == ["torch.int4", "torch.int3", "None", "torch.int4", "torch.int3"][: len(kinds)]
    with torch.no_grad():
        assert model(inputs).isfinite().all()


def _tokens():
    return make("Tokens")


def test_model_optimizer_takes_its_configuration(written, digits_images):
    mtq = pytest.importorskip("modelopt.torch.quantization", exc_type=ImportError)
    import copy

    file = written("modelopt", ["w8a8", "w4a8", "wfp32afp32"])
    document = json.loads(file.path.read_text())
    model = mtq.quantize(copy.deepcopy(file.model), document, forward_loop=lambda model: model(digits_images[:64]))
    for name, precision in file.policy.items():
        for kind, fmt in (("weight", precision.weight), ("input", precision.activation)):
            quantizer = getattr(model.get_submodule(name), f"{kind}_quantizer")
            assert quantizer.is_enabled != fmt.is_float
            assert fmt.is_float or quantizer.num_bits == fmt.bits


def test_aimet_computes_the_same(written, digits_images):
    quantsim = pytest.importorskip("aimet_torch.quantsim", exc_type=ImportError)
    file = written("aimet", ["w8a8", "w4a8", "w3a4"])
    sim = quantsim.QuantizationSimModel(file.model, digits_images[:2])
    sim.load_encodings(str(file.path), strict=False, partial=False)
    weights = {name: sim.model.get_submodule(name).param_quantizers["weight"] for name in file.policy}
    assert {name: q.bitwidth for name, q in weights.items()} == {n: p.weight.bits for n, p in file.policy.items()}
    for name, quantizer in weights.items():
        wanted = file.quantized.quantized_weight(name, file.policy[name].weight)
        with torch.no_grad():
            got = quantizer(file.quantized.float_weight(name))
        torch.testing.assert_close(torch.as_tensor(got.dequantize()), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("granularity", ["channel", "tensor", "group"])
def test_qonnx_computes_the_same(tmp_path, granularity, monkeypatch):
    pytest.importorskip("qonnx")
    monkeypatch.setattr("onnx.IR_VERSION", 10)  # QONNX's models of single nodes, for whatever ONNX Runtime is there
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    model, inputs = make("Depthwise")
    settings = QuantizationConfig(weight_granularity=granularity, group_size=10)
    quantized = QuantizedModel(model, quantization=settings, calibration=[(inputs, None)])
    for precisions in (["w8a8", "w3a5", "w4a4"], ["wternarya8", "wbinarya8", "w8abinary"]):
        quantized.apply(mixed(quantized.layers, precisions))
        path = tmp_path / "model.onnx"
        export(quantized, model, path, inputs=inputs[:2], format="qonnx")
        found = execute_onnx(ModelWrapper(str(path)).transform(InferShapes()), {"input": inputs[:1].numpy()})
        with torch.no_grad():
            wanted = quantized(inputs[:1]).numpy()
        assert np.abs(next(iter(found.values())) - wanted).mean() < 2e-3 * np.abs(wanted).max()


def test_qonnx_names_each_format(tmp_path):
    onnx = pytest.importorskip("onnx")
    model, inputs = make("Branches")
    quantized = QuantizedModel(model, calibration=[(inputs, None)])
    quantized.apply(mixed(quantized.layers, ["w4a8", "w2a3"]))
    export(quantized, model, tmp_path / "m.onnx", inputs=inputs[:2], format="qonnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    bits = {node.name.partition("#")[0]: int(values[node.input[3]]) for node in graph.node if node.op_type == "Quant"}
    for name, precision in quantized.policy.items():
        assert bits[f"{name}.weight.quant"] == precision.weight.bits
        assert bits[f"{name}.input.quant"] == precision.activation.bits
