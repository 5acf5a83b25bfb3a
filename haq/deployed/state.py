"""What deploying a policy needs of a quantized model, as plain values: integer weights, ranges and everything else."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from haq.modules import prepare
from haq.quant import QuantizedModel, Quantizer
from haq.quant.channel_clip import UPPER, clip_by_channel
from haq.quant.formats.all import coder
from haq.quant.formats.base import Arrays, Coder, IntegerCodes
from haq.quant.formats.half import Identity, float_quantizer
from haq.quant.layers import lay_out
from haq.quant.settings import QuantizationConfig
from haq.quant.weights import WeightLayout, WeightQuantizer
from haq.training import TrainableModel
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.policy import Policy


@dataclass(frozen=True, eq=False)
class IntegerWeight:
    """A quantized weight: values are (codes - zero_point) * scale, row by row of the layout.

    Attributes:
        layout: how the weight falls into blocks of rows.
        blocks: `(codes [rows, n] int32, scale [rows, 1], zero_point [rows, 1] int32)` of each.
    """

    layout: WeightLayout
    blocks: tuple[tuple[Tensor, Tensor, Tensor], ...]

    @classmethod
    def of(cls, quantizer: WeightQuantizer, weight: Tensor) -> IntegerWeight:
        """The codes that `quantizer`, of an integer format, gives the float `weight`."""
        parts = zip(quantizer.blocks, quantizer.layout.split(weight.float()), strict=True)
        blocks = (_codes(block, rows) for block, rows in parts)
        return cls(quantizer.layout, tuple((codes.cpu(), scale.cpu(), zero.cpu()) for codes, scale, zero in blocks))

    def fits(self, bits: int) -> bool:
        """Whether integers of `bits` hold the codes, with a sign or without."""
        low = min(int(codes.min()) for codes, _, _ in self.blocks)
        high = max(int(codes.max()) for codes, _, _ in self.blocks)
        return low >= -(1 << bits - 1) and high < (1 << (bits if low >= 0 else bits - 1))

    @property
    def codes(self) -> Tensor:
        """All codes, shaped like the weight."""
        return self.layout.join(tuple(codes for codes, _, _ in self.blocks))

    def dequantize(self) -> Tensor:
        """The float weight, bit for bit what the quantizer gave."""
        return self.layout.join(tuple((codes - zero).to(scale.dtype) * scale for codes, scale, zero in self.blocks))


def _codes(quantizer: Quantizer, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    assert isinstance(quantizer, IntegerCodes)
    return quantizer.integer_codes(rows)


@dataclass(frozen=True, eq=False)
class CodedWeight:
    """A weight in a format that stores arrays of its own: codes, and what they are multiplied with.

    Attributes:
        layout: how the weight falls into blocks of rows.
        format: of the weight.
        blocks: the arrays of each.
    """

    layout: WeightLayout
    format: Format
    blocks: tuple[Arrays, ...]

    @classmethod
    def of(cls, quantizer: WeightQuantizer, weight: Tensor, fmt: Format) -> CodedWeight:
        """What `quantizer`, of the coded format `fmt`, stores of the float `weight`."""
        blocks: list[Arrays] = []
        for block, rows in zip(quantizer.blocks, quantizer.layout.split(weight.float()), strict=True):
            assert isinstance(block, Coder)
            blocks.append({key: value.cpu().contiguous() for key, value in block.encode(rows).items()})
        return cls(quantizer.layout, fmt, tuple(blocks))

    def dequantize(self) -> Tensor:
        """The float weight, bit for bit what the quantizer gave."""
        decoder = coder(self.format)
        assert decoder is not None
        parts = zip(self.blocks, self.layout.columns(), strict=True)
        return self.layout.join(tuple(decoder.decode(arrays, columns) for arrays, columns in parts))


def stored_weight(quantizer: WeightQuantizer, weight: Tensor, fmt: Format) -> IntegerWeight | CodedWeight | None:
    """What is stored of a weight in `fmt`; `None` where it is its floats."""
    if float_quantizer(fmt) is not None:
        return None
    if coder(fmt) is not None:
        return CodedWeight.of(quantizer, weight, fmt)
    return IntegerWeight.of(quantizer, weight)


@dataclass(frozen=True, eq=False)
class LayerState:
    """One layer as deployed.

    Attributes:
        weight: integers times a scale; `None` where it is stored as floats (fp16, bf16, fp32 and integers wider than
            16 bits) or in arrays of its format's own.
        input: quantizes what the layer reads.
        coded: those arrays, where the format has them.
    """

    precision: Precision
    weight: IntegerWeight | None
    input: Quantizer
    coded: CodedWeight | None = None

    @classmethod
    def of(cls, precision: Precision, stored: IntegerWeight | CodedWeight | None, read: Quantizer) -> LayerState:
        """A layer whose weight is stored as `stored`."""
        if isinstance(stored, CodedWeight):
            return cls(precision, None, read, stored)
        return cls(precision, stored, read)

    @property
    def stored(self) -> IntegerWeight | CodedWeight | None:
        """What the weight is stored as; `None`: its floats."""
        return self.weight or self.coded


@dataclass(frozen=True, eq=False)
class ModelState:
    """A quantized model without the machinery that switches its formats.

    Attributes:
        layers: name -> layer.
        tensors: all parameters and buffers but the integer weights, by their names in the model's state dict.
        folded: batch norms whose work is in a layer's weight and bias.
        trained: whether weights are other ones than the float model's.
    """

    layers: Mapping[str, LayerState]
    tensors: Mapping[str, Tensor]
    folded: tuple[str, ...]
    quantization: QuantizationConfig
    trained: bool = False

    @property
    def policy(self) -> Policy:
        return Policy({name: layer.precision for name, layer in self.layers.items()})


def capture(quantized: QuantizedModel | TrainableModel) -> ModelState:
    """The state of `quantized` as it is now: policy, bias correction and batch-norm statistics included.

    Of a trainable model also all that it learned; what it computes with is on the levels of the state.

    Raises:
        InputError: no policy is applied, or a layer was trained on levels that integers times a scale cannot hold.
    """
    policy = quantized.policy
    if policy is None:
        raise InputError("nothing to export: the model is in float; apply a policy first")
    if isinstance(quantized, TrainableModel):
        return _trained_state(quantized, policy)
    layers = {name: _layer_state(quantized, name, policy[name]) for name in quantized.layers}
    stored = {f"{name}.weight" for name, layer in layers.items() if layer.stored is not None}
    tensors = {name: _kept(value) for name, value in quantized.module.state_dict().items() if name not in stored}
    folded = (name for name in quantized.batch_norms if isinstance(quantized.module.get_submodule(name), nn.Identity))
    return ModelState(layers, tensors, tuple(folded), quantized.quantization)


def _layer_state(quantized: QuantizedModel, name: str, precision: Precision) -> LayerState:
    quantizer = quantized.weight_quantizer(name, precision.weight)
    weight = quantized.repaired.get(name, quantized.float_weight(name))
    stored = stored_weight(quantizer, weight, precision.weight)
    return LayerState.of(precision, stored, quantized.activation_quantizer(name, precision.activation))


def _trained_state(model: TrainableModel, policy: Policy) -> ModelState:
    layers, tensors = {}, {name: _kept(value) for name, value in model.state().module.items()}
    for name, precision in policy.items():
        quantizer, values = model.fixed_weight(name)
        kept, stored = tensors.pop(f"{name}.weight"), stored_weight(quantizer, values, precision.weight)
        if stored is None:
            tensors[f"{name}.weight"] = _kept(values.to(kept.dtype))
        layers[name] = LayerState.of(precision, stored, model.fixed_input(name))
    return ModelState(layers, tensors, (), model.quantization, trained=True)


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def check_codes(format: str, state: ModelState, *, most: int | None = None) -> None:
    """That integers of a layer's own bits hold its weight's codes.

    Args:
        format: who asks, for the message.
        state: of which all layers of integer formats are looked at.
        most: so many bits instead, whatever the layer's.

    Raises:
        InputError: one does not fit: DoReFa's levels, which are none of integers of that many bits.
    """
    for name, layer in state.layers.items():
        fmt = layer.precision.weight
        if layer.weight is not None and (fmt.is_integer or fmt.group_size) and not layer.weight.fits(most or fmt.bits):
            able = "torch" if most else "onnx or torch"
            raise InputError(
                f"--format {format}: layer {name} was trained on DoReFa's levels, odd multiples of half a step, which "
                f"{most or fmt.bits}-bit integers cannot say; use --format {able}, or quantizer = 'lsq' or 'ste'"
            )


def check_formats(exporter: str, state: ModelState) -> None:
    """That an exporter has all formats of a state.

    Raises:
        InputError: names the layer, the format, and who has it.
    """
    for name, layer in state.layers.items():
        for what, fmt in (("weights", layer.precision.weight), ("activations", layer.precision.activation)):
            able = fmt.family.exporters
            if able is not None and exporter not in able:
                raise InputError(
                    f"--format {exporter}: layer {name} has {fmt} {what}, which it cannot say; use --format "
                    f"{' or '.join(able)}, or leave {fmt} out of the space"
                )


class QuantizeInput:
    """A forward pre-hook that quantizes a module's first argument."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args:
            return args, {**kwargs, "input": self.quantizer(kwargs["input"])}
        return (self.quantizer(args[0]), *args[1:]), kwargs


def restore(model: nn.Module, state: ModelState, *, hooks: bool = True) -> nn.Module:
    """A copy of the float `model` with the weights, ranges and statistics of `state`.

    Args:
        model: of the architecture that was quantized, on the CPU; its own weights do not matter. Left as it is.
        state: what to put in.
        hooks: whether layers quantize their inputs.

    Raises:
        InputError: the model has other layers or parameters.
    """
    module = copy.deepcopy(prepared_like(model, state.tensors)).eval()
    _check_layers(module, state)
    tensors = dict(state.tensors)
    for name in state.folded:
        path, _, child = name.rpartition(".")
        module.get_submodule(path)._modules[child] = nn.Identity()
    _clip(module, tensors)
    for name, layer in state.layers.items():
        target = module.get_submodule(name)
        if layer.stored is not None:
            tensors[f"{name}.weight"] = layer.stored.dequantize()
        bias = tensors.get(f"{name}.bias")
        if bias is not None and target._parameters.get("bias") is None:
            target._parameters["bias"] = nn.Parameter(torch.empty_like(bias))
        quantized = not isinstance(float_quantizer(layer.precision.weight), Identity)
        # A weight of its own, should the float model share it with another layer.
        for key, parameter in target._parameters.items():
            if parameter is not None:
                own = lay_out(parameter.detach()) if key == "weight" and quantized else parameter.detach().clone()
                target._parameters[key] = nn.Parameter(own, requires_grad=False)
        if hooks and not isinstance(layer.input, Identity):
            target.register_forward_pre_hook(QuantizeInput(layer.input), prepend=True, with_kwargs=True)
    _load(module, tensors)
    return module


def prepared_like(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """`model` with packed modules taken apart but those whose own parameters are among `names`, which stayed as they
    were when these were captured."""
    known = set(names)

    def keep(name: str, module: nn.Module) -> bool:
        return all((f"{name}.{own}" if name else own) in known for own, _ in module.named_parameters())

    return prepare(model, keep=keep)


def _clip(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put clips by channel where the state has bounds of them, in place of the model's ReLU6."""
    suffix = f".{UPPER}"
    known = dict(module.named_modules())
    names = [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]
    names = [name for name in names if isinstance(known.get(name), nn.ReLU6)]
    clip_by_channel(module, names, (tensors[f"{name}{suffix}"].numel() for name in names))


def _check_layers(module: nn.Module, state: ModelState) -> None:
    known = {name for name, _ in module.named_modules()}
    missing = [name for name in (*state.layers, *state.folded) if name not in known]
    if missing:
        raise InputError(
            f"the export is of another model: {type(module).__name__} has no module {', '.join(missing)}; build the "
            "architecture that was quantized"
        )


def _load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the export is of another model: {reason}; build the architecture that was quantized") from (
            error
        )
