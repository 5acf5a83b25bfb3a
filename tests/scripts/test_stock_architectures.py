"""Hugging Face's models as they are: traced, quantized, exported, with the model given left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from stock_architectures import ARCHITECTURES, built, row

from haq.export import export, load_quantized
from haq.export.onnx.run import OnnxRunner
from haq.quant import QuantizedModel
from haq.quant.nested import call_model
from haq.trace import trace
from haq.values.formats import Precision
from haq.values.policy import Policy

QUICK = ("bert", "gpt2", "vit")
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]


@pytest.mark.parametrize("name", CASES)
def test_files_compute_what_the_quantized_model_computes(name: str, tmp_path: Path) -> None:
    model, inputs = built(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network = trace(model, (), example_kwargs={key: value[:1] for key, value in inputs.items()})
    quantized = QuantizedModel(model, calibration=[(inputs, None)], layers=network.layer_names)
    quantized.apply(Policy.uniform(network.layer_names, Precision.parse("w4a8")))
    with torch.no_grad():
        wide, wanted = model(**inputs).logits, quantized(inputs)
    assert 1e-4 < float((wanted - wide).norm() / wide.norm()) < 0.8
    for kind in ("onnx", "torch"):
        export(quantized, model, tmp_path / kind, inputs=inputs, format=kind)
    got = OnnxRunner((tmp_path / "onnx").read_bytes())(inputs)
    assert float((got - wanted).norm() / wanted.norm()) < 0.02
    assert torch.equal(call_model(load_quantized(model, tmp_path / "torch"), inputs), wanted)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_a_row_of_the_table() -> None:
    cells = [cell.strip() for cell in row("bert").strip("|").split("|")]
    assert cells[0] == "BertForSequenceClassification"
    assert float(cells[3]) > 0.9
    assert float(cells[4]) < 0.01
