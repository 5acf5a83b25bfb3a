"""Other libraries' quantization-aware training of the same network: the rows that `qat_step.py --peers` adds.

Each entry prepares a float model the way its library documents and is imported only when it is asked for. What comes
out is checked: convolutions see no more different values than the bits allow, every parameter gets a gradient.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from haq.values.formats import Precision

Build = Callable[[nn.Module, Tensor, Precision], nn.Module]


@dataclass(frozen=True)
class Peer:
    """A library's way to prepare a model for quantization-aware training.

    Attributes:
        build: a float model, which it may change, a batch of images, bits of weights and activations -> what trains.
        package: whose absence leaves the row out.
        install: what pip calls it.
        bits: those that it has, if not any.
    """

    build: Build
    package: str
    install: str
    bits: str | None = None


def rows(model: nn.Module, images: Tensor, bits: str) -> Iterator[tuple[str, nn.Module]]:
    """Name of a peer with its bits, and the model it trains; a peer that is not installed gives a line instead."""
    for name, peer in PEERS.items():
        if importlib.util.find_spec(peer.package) is None:
            print(f"{name}: pip install {peer.install}")
            continue
        precision = Precision.parse(peer.bits or bits)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            plain = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
            module = peer.build(plain, images, precision)
            check(name, module, precision, images)
        yield f"{name} {precision}", module


def check(name: str, module: nn.Module, precision: Precision, images: Tensor) -> None:
    """Raise unless convolutions read and hold no more values than `precision` has, and every parameter trains."""
    with Levels() as levels:
        outputs = module(images)
    outputs.square().sum().backward()
    idle = [key for key, value in module.named_parameters() if value.requires_grad and value.grad is None]
    module.zero_grad(set_to_none=True)
    found, allowed = (levels.weights, levels.inputs), (2**precision.weight.bits, 2**precision.activation.bits)
    if idle or not all(1 < count <= most for count, most in zip(found, allowed, strict=True)):
        raise RuntimeError(f"{name}: not {precision}: levels of weights and activations {found}; no gradient: {idle}")


class Levels(TorchDispatchMode):
    """Counts, while it is entered, the most different values that a convolution reads and has in one output channel."""

    weights = inputs = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.convolution.default:
            given, weight = args[0].detach(), args[1].detach()
            self.inputs = max(self.inputs, given[:4].unique().numel())
            self.weights = max(self.weights, *(channel.unique().numel() for channel in weight))
        return function(*args, **(kwargs or {}))


def torch_fx(model: nn.Module, images: Tensor, precision: Precision) -> nn.Module:
    """FX graph mode with observers: scales follow a moving average, batch norm is folded while it trains."""
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
    from torch.ao.quantization.qconfig import QConfig
    from torch.ao.quantization.qconfig_mapping import QConfigMapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    activation = FakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver, dtype=torch.quint8, **_codes(precision.activation.bits, signed=False)
    )
    weight = FakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver,
        qscheme=torch.per_channel_symmetric,
        dtype=torch.qint8,
        **_codes(precision.weight.bits, signed=True),
    )
    return prepare_qat_fx(model, QConfigMapping().set_global(QConfig(activation, weight)), (images,))


def torch_fx_learned(model: nn.Module, images: Tensor, precision: Precision) -> nn.Module:
    """The same with torch's own learnable fake quantization: LSQ with learned zero points."""
    from torch.ao.quantization import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
    from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize
    from torch.ao.quantization.qconfig import QConfig
    from torch.ao.quantization.qconfig_mapping import QConfigMapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    activation = _LearnableFakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver,
        dtype=torch.quint8,
        use_grad_scaling=True,
        **_codes(precision.activation.bits, signed=False),
    )
    mapping = QConfigMapping()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = _LearnableFakeQuantize.with_args(
                observer=MovingAveragePerChannelMinMaxObserver,
                qscheme=torch.per_channel_symmetric,
                dtype=torch.qint8,
                use_grad_scaling=True,
                channel_len=len(layer.weight),
                **_codes(precision.weight.bits, signed=True),
            )
            mapping.set_module_name(name, QConfig(activation, weight))
    prepared = prepare_qat_fx(model, mapping, (images,))
    prepared(images)
    for child in prepared.modules():
        if isinstance(child, _LearnableFakeQuantize):
            child.enable_param_learning()
    return prepared


def torchao_pt2e(model: nn.Module, images: Tensor, precision: Precision) -> nn.Module:
    """The exported graph with the quantizer for x86 processors; 8 bit is what it has."""
    from torchao.quantization.pt2e import allow_exported_model_train_eval, move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    exported = torch.export.export(model, (images,)).module()
    prepared = prepare_qat_pt2e(exported, quantizer)
    move_exported_model_to_train(prepared)
    return allow_exported_model_train_eval(prepared)


def brevitas(model: nn.Module, images: Tensor, precision: Precision) -> nn.Module:
    """Quantized layers in place of float ones; input scales are learned after one step that takes their statistics."""
    import brevitas.nn as quantized
    from brevitas.graph.quantize import layerwise_quantize
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    options = {
        "weight_quant": Int8WeightPerChannelFloat,
        "weight_bit_width": precision.weight.bits,
        "input_quant": Int8ActPerTensorFloat,
        "input_bit_width": precision.activation.bits,
        "input_collect_stats_steps": 1,
    }
    layers = {nn.Conv2d: (quantized.QuantConv2d, options), nn.Linear: (quantized.QuantLinear, options)}
    prepared = layerwise_quantize(model, compute_layer_map=layers).train()
    for _ in range(2):
        prepared(images)
    return prepared


def model_optimizer(model: nn.Module, images: Tensor, precision: Precision) -> nn.Module:
    """NVIDIA's library: calibrated scales that stay, straight through."""
    import modelopt.torch.quantization as modelopt

    def entry(pattern: str, bits: int, axis: int | None) -> dict[str, object]:
        return {"quantizer_name": pattern, "cfg": {"num_bits": bits, "axis": axis}, "enable": True}

    settings = [
        {"quantizer_name": "*", "enable": False},
        entry("*weight_quantizer", precision.weight.bits, 0),
        entry("*input_quantizer", precision.activation.bits, None),
    ]
    return modelopt.quantize(model, {"quant_cfg": settings, "algorithm": "max"}, lambda module: module(images)).train()


def nncf(model: nn.Module, images: Tensor, precision: Precision) -> nn.Module:
    """Post-training quantization whose scales train on; 8 bit is what it has."""
    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")  # it compiles its kernels the first time
    import nncf as library

    return library.quantize(model.eval(), library.Dataset([images]), subset_size=1).train()


def _codes(bits: int, *, signed: bool) -> dict[str, int]:
    low = -(2 ** (bits - 1)) if signed else 0
    return {"quant_min": low, "quant_max": low + 2**bits - 1}


PEERS = {
    "torch FX": Peer(torch_fx, "torch", "torch"),
    "torch FX, learned": Peer(torch_fx_learned, "torch", "torch"),
    "torchao PT2E": Peer(torchao_pt2e, "torchao", "torchao", bits="w8a8"),
    "brevitas": Peer(brevitas, "brevitas", "brevitas"),
    "Model Optimizer": Peer(model_optimizer, "modelopt", "nvidia-modelopt"),
    "NNCF": Peer(nncf, "nncf", "nncf", bits="w8a8"),
}
