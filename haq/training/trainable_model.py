"""`TrainableModel`: a float model's copy whose quantizers train with it; `apply(policy)` starts it anew in place."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from haq.quant.choice import prepared_for
from haq.quant.formats.base import Quantizer
from haq.quant.layers import FLOAT
from haq.quant.model import QuantizedModel
from haq.quant.nested import call_model, map_tensors
from haq.quant.settings import QuantizationConfig
from haq.quant.weights import WeightLayout, WeightQuantizer
from haq.training.choice import SCHEMES, TERNARY, Choice
from haq.training.learned_quantizers import PACT, TrainableQuantizer
from haq.training.placement import InputSlot, WeightSlot
from haq.training.recompute import QuantizesInput
from haq.values.errors import InputError
from haq.values.policy import Policy

Slots = dict[tuple[str, str, str], list[dict[str, Tensor]]]
"""(`weight` or `input`, layer, format name) -> what its quantizers learned."""


@dataclass(frozen=True, eq=False)
class TrainedState:
    """What a training came to: a start for others.

    Attributes:
        module: parameters and buffers of the float model, by name.
        slots: what quantizers learned, for each format they were trained in.
    """

    module: Mapping[str, Tensor]
    slots: Slots

    def on_cpu(self) -> TrainedState:
        """The same, to be sent."""
        slots = {key: [{n: v.cpu() for n, v in one.items()} for one in state] for key, state in self.slots.items()}
        return TrainedState({name: value.cpu() for name, value in self.module.items()}, slots)


class TrainableModel:
    """A copy of a float model, in channels-last memory where it has 2-d convolutions, that trains under a policy.

    The float model is never changed. Layers that read the same tensor in the same format share its quantizer.

    Args:
        model: the float model.
        quantized: the same model wrapped: gives layers, calibrated ranges and settings.
        scheme: a name in `haq.training.choice.SCHEMES`.
        ternary: a name in `haq.training.choice.TERNARY`.

    Attributes:
        module: the trainable copy.
        policy: what is applied now.
        batch_norms: name -> each batch norm that has running statistics.
        calibration: the calibration inputs.

    Raises:
        InputError: unknown scheme; or the batch norm was folded, which trains nothing.
    """

    def __init__(
        self, model: nn.Module, quantized: QuantizedModel, *, scheme: str = "lsq", ternary: str = "twn"
    ) -> None:
        _check(quantized, scheme, ternary)
        self._quantized = quantized
        self._choice = Choice(scheme, ternary)
        self.module = copy.deepcopy(prepared_for(model, quantized.layers)).to(quantized.device)
        self._channels_last = any(isinstance(child, nn.Conv2d) for child in self.module.modules())
        if self._channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module.requires_grad_(True)
        self._start = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.module.eval()
        self.policy: Policy | None = None
        self.calibration = tuple(map(self.prepared, quantized.calibration))
        self.batch_norms = {
            name: child
            for name, child in self.module.named_modules()
            if isinstance(child, _BatchNorm) and child.running_mean is not None
        }
        self._layers = {name: self.module.get_submodule(name) for name in quantized.layers}
        self._weights = {name: self._weight_slot(name) for name in self._layers}
        self._inputs: dict[tuple[str, int], InputSlot] = {}
        for name in self._layers:
            QuantizesInput(self._layers[name])

    def __call__(self, inputs: Any) -> Any:
        """The outputs for one batch of inputs on this model's device."""
        return call_model(self.module, inputs)

    @property
    def device(self) -> torch.device:
        return self._quantized.device

    @property
    def quantization(self) -> QuantizationConfig:
        """The quantization settings, without `None`."""
        return self._quantized.quantization

    def to_device(self, value: Any) -> Any:
        """`value`, its tensors on this model's device."""
        return self._quantized.to_device(value)

    def prepared(self, inputs: Any) -> Any:
        """Inputs on the model's device and in its memory format."""

        def place(tensor: Tensor) -> Tensor:
            if self._channels_last and tensor.dim() == 4:
                return tensor.contiguous(memory_format=torch.channels_last)
            return tensor

        return map_tensors(place, self.to_device(inputs))

    def apply(self, policy: Policy, *, start: TrainedState | None = None, keep_weights: bool = False) -> None:
        """Begin anew under `policy`: float weights and calibrated quantizers, or what `start` holds of them.

        Args:
            policy: for this model's layers.
            start: of an earlier training of this model; formats it does not know start calibrated.
            keep_weights: leave weights and batch norm as they are and only switch formats.

        Raises:
            InputError: the policy is for another model; lists missing and unknown layers.
        """
        try:
            policy.check_layers(self._layers)
        except ValueError as error:
            raise InputError(str(error)) from error
        if not keep_weights:
            self._restore(self._start if start is None else start.module)
        known = {} if start is None else start.slots
        for key, slot in self._switched(policy):
            if key in known:
                slot.load(known[key])
        self.policy = policy

    def state(self) -> TrainedState:
        """What was trained until now, under the policy in use."""
        module = {name: value.detach().clone() for name, value in self._named()}
        assert self.policy is not None
        return TrainedState(module, {key: slot.state() for key, slot in self.slots()})

    def fixed_weight(self, layer: str) -> tuple[WeightQuantizer, Tensor]:
        """The weight quantizer of `layer` as training left it, and the weight's values on its levels, in float32.

        Raises:
            InputError: no deployed format has such levels; says which and why.
        """
        module: Any = self._layers[layer]
        try:
            with torch.no_grad():
                return self._weights[layer].fixed(module.parametrizations.weight.original)
        except InputError as error:
            raise InputError(f"layer {layer}: {error}") from error

    def fixed_input(self, layer: str) -> Quantizer:
        """The quantizer of what `layer` reads, as training left it."""
        slot = self._layers[layer].input_slot
        assert isinstance(slot, InputSlot)
        return slot.fixed()

    def slots(self) -> Iterator[tuple[tuple[str, str, str], WeightSlot | InputSlot]]:
        """The places of the policy in use: (`weight` or `input`, layer, format) and the slot; shared ones once."""
        assert self.policy is not None
        seen = set()
        for name, layer in self._layers.items():
            precision = self.policy[name]
            yield ("weight", name, precision.weight.name), self._weights[name]
            slot = layer.input_slot
            assert isinstance(slot, InputSlot)
            if id(slot) not in seen:
                seen.add(id(slot))
                yield ("input", self._quantized.input_leaders[name], precision.activation.name), slot

    def quantizers(self) -> Iterator[TrainableQuantizer]:
        """Those of the policy in use."""
        for _, slot in self.slots():
            for quantizer in slot.active:
                assert isinstance(quantizer, TrainableQuantizer)
                yield quantizer

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters that weight decay is for (weights, PACT's levels), and the others (biases, batch norm, steps)."""
        learned = {id(p): p for quantizer in self.quantizers() for p in quantizer.parameters()}
        levels = {id(q.level) for q in self.quantizers() if isinstance(q, PACT)}
        own = {id(p): p for name, p in self._named() if isinstance(p, nn.Parameter)}
        everything = own | learned
        decayed = [p for key, p in everything.items() if key in levels or (key in own and p.dim() > 1)]
        rest = [p for key, p in everything.items() if not (key in levels or (key in own and p.dim() > 1))]
        return decayed, rest

    def bounded(self) -> None:
        """Bring what quantizers learned back to where it makes sense; to be called after each optimizer step."""
        for quantizer in self.quantizers():
            quantizer.bounded()

    def set_batch_norm_statistics(self, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Set running mean and variance of batch norms, by name, until the next `apply`."""
        for name, (mean, variance) in statistics.items():
            norm = self.batch_norms[name]
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers under the names that the float model has for them."""
        for name, value in self.module.state_dict(keep_vars=True).items():
            plain = name.replace("parametrizations.weight.original", "weight")
            if plain in self._start:
                yield plain, value

    def _restore(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._named():
                value.copy_(values[name])
                value.grad = None

    def _weight_slot(self, name: str) -> WeightSlot:
        layer = self._layers[name]
        assert isinstance(layer.weight, Tensor)
        slot = WeightSlot(
            WeightLayout.of(layer, layer.weight, self._quantized.quantization, FLOAT.weight), self._choice
        )
        parametrize.register_parametrization(layer, "weight", slot, unsafe=True)
        return slot

    def _switched(self, policy: Policy) -> list[tuple[tuple[str, str, str], WeightSlot | InputSlot]]:
        """Put each layer's slots into the policy's formats, calibrated."""
        self.policy = policy
        shared: dict[tuple[str, str], InputSlot] = {}
        members: dict[str, int] = {}
        for name, layer in self._layers.items():
            precision = policy[name]
            calibrated = self._quantized.weight_quantizer(name, precision.weight)
            self._weights[name].start(calibrated, self._quantized.float_weight(name))
            leader = self._quantized.input_leaders[name]
            key = leader, precision.activation.name
            if key not in shared:
                index = members[leader] = members.get(leader, -1) + 1
                slot = shared[key] = self._input_slot(leader, index)
                slot.readers = 0
                shape = self._quantized.input_shapes[name]
                slot.start(
                    self._quantized.activation_quantizer(name, precision.activation), shape, self._quantized.device
                )
            shared[key].readers += 1
            layer.input_slot = shared[key]
        return list(self.slots())

    def _input_slot(self, leader: str, index: int) -> InputSlot:
        key = leader, index
        if key not in self._inputs:
            self._inputs[key] = InputSlot(self._choice)
            self.module.register_forward_hook(self._inputs[key].forget, always_call=True)
        return self._inputs[key]


def _check(quantized: QuantizedModel, scheme: str, ternary: str) -> None:
    for given, known, what in ((scheme, SCHEMES, "quantizer"), (ternary, TERNARY, "ternary")):
        if given not in known:
            raise InputError(f"unknown {what} {given!r}; known: {', '.join(sorted(known))}")
    if quantized.quantization.weight_rounding != "nearest":
        raise InputError(
            f"quantization.weight_rounding = {quantized.quantization.weight_rounding!r}: fine-tuning rounds to the "
            "nearest; leave it out, or the fine-tuning"
        )
    if quantized.quantization.batch_norm == "fold":
        raise InputError(
            "quantization.batch_norm = 'fold': fine-tuning trains the batch norm itself; take 'keep' or 'reestimate'"
        )
