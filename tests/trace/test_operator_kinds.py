"""Every kind of convolution, from the trace to a file that runs, against torch's own counts and outputs."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from haq.hardware import shape_key
from haq.hardware.packing import gemm
from haq.quant import QuantizedModel
from haq.quant.settings import QuantizationConfig
from haq.trace import trace
from haq.values.formats import Precision
from haq.values.policy import Policy

CASES = {
    "conv3d": (nn.Conv3d(4, 6, 3, padding=1, groups=2), (4, 5, 4, 3)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (4, 9)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 4)),
    "conv_transpose3d": (nn.ConvTranspose3d(4, 6, (2, 3, 1), stride=2, groups=2), (4, 3, 4, 3)),
}


@pytest.mark.parametrize("kind", CASES)
def test_macs_are_half_of_what_torch_counts(kind):
    layer, shape = CASES[kind]
    network = trace(nn.Sequential(layer), torch.zeros(3, *shape))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.zeros(1, *shape))
    (spec,) = network.layers
    assert (spec.kind, spec.macs) == (kind, counter.get_total_flops() // 2)
    assert (spec.in_channels, spec.out_channels) == (4, 6)
    product = gemm(spec)
    assert product.groups * product.rows * product.depth * product.columns == spec.macs
    assert shape_key(spec).startswith(f"{kind}_i4_o6_k")


def _spread(layer):
    """A copy whose output channels differ by a factor of 1000 in size."""
    layer = copy.deepcopy(layer)
    sizes = 10.0 ** torch.linspace(-3, 0, 6)
    with torch.no_grad():
        layer.bias.zero_()
        if layer.transposed:
            layer.weight.view(2, 2, 3, -1).mul_(sizes.view(2, 1, 3, 1))
        else:
            layer.weight.mul_(sizes.view(6, *[1] * (layer.weight.dim() - 1)))
    return layer


@pytest.mark.parametrize("kind", CASES)
def test_each_output_channel_has_a_scale_of_its_own(kind):
    layer, shape = CASES[kind]
    layer = _spread(layer)
    model = nn.Sequential(layer).eval()
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    quantized = QuantizedModel(model, calibration=[(x, None)])
    with torch.no_grad():
        wide = model(x).transpose(0, 1).flatten(1)
        quantized.apply(Policy({"0": Precision.parse("w8a8")}))
        error = (quantized(x).transpose(0, 1).flatten(1) - wide).norm(dim=1) / wide.norm(dim=1)
    assert float(error.max()) < 0.02


@pytest.mark.parametrize("fold", ["keep", "fold"])
@pytest.mark.parametrize("kind", ["conv_transpose1d", "conv_transpose3d", "conv3d"])
def test_batch_norm_folds_into_every_kind(kind, fold):
    layer, shape = CASES[kind]
    norm = (nn.BatchNorm1d if kind == "conv_transpose1d" else nn.BatchNorm3d)(6)
    model = nn.Sequential(layer, norm)
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(1))
    model.train()(x)
    model.eval()
    quantized = QuantizedModel(model, calibration=[(x, None)], quantization=QuantizationConfig(batch_norm=fold))
    with torch.no_grad():
        wide = model(x)
        quantized.apply(Policy({"0": Precision.parse("w8a8")}))
        assert float((quantized(x) - wide).norm() / wide.norm()) < 0.02


@pytest.mark.parametrize("kind", CASES)
def test_onnx_runtime_computes_the_quantized_model(kind, tmp_path):
    pytest.importorskip("onnxruntime")
    from haq.export import EXPORTERS, export

    layer, shape = CASES[kind]
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(2))
    model(x)
    quantized = QuantizedModel(model, calibration=[(x, None)])
    quantized.apply(Policy({"0": Precision.parse("w4a8"), "3": Precision.parse("w8a8")}))
    export(quantized, model, tmp_path / "m.onnx", inputs=x, format="onnx")
    got = EXPORTERS["onnx"].load(tmp_path / "m.onnx", model)(x)
    with torch.no_grad():
        wanted = quantized(x)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-2
