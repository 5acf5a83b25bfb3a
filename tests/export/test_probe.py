"""The probe tells whether this runtime saturates, and `--check` names that as the cause."""

import pytest
import torch

pytest.importorskip("onnxruntime")
from export_models import saturating

from haq import Policy, Precision, QuantizedModel
from haq.export import capture
from haq.export.onnx.model import onnx_model
from haq.export.onnx.probe import has_signed_weights, saturates
from haq.export.onnx.run import OnnxRunner


@pytest.fixture
def exported():
    model, x = saturating()
    quantized = QuantizedModel(model, calibration=[(x, None)])
    quantized.apply(Policy.uniform(quantized.layers, Precision.parse("w8a8")))
    state = capture(quantized)
    return {cpu: onnx_model(model, state, x, target_cpu=cpu).SerializeToString() for cpu in ("any", "vnni")}, x


def off(blob, x):
    exact, got = (OnnxRunner(blob, optimize=optimize)(x) for optimize in (False, True))
    return float((got - exact).norm() / exact.norm())


def test_files_for_any_processor_hold_no_signed_8_bit_weights(exported):
    files, _ = exported
    assert [has_signed_weights(files[cpu]) for cpu in ("any", "vnni")] == [False, True]


def test_the_probe_says_what_signed_weights_do_here(exported):
    files, x = exported
    assert off(files["any"], x) < 1e-3
    assert (off(files["vnni"], x) > 0.02) == saturates()


def test_both_forms_say_the_same(exported):
    files, x = exported
    first, second = (OnnxRunner(files[cpu], optimize=False)(x) for cpu in ("any", "vnni"))
    assert torch.equal(first, second)
