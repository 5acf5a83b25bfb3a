"""`QuantizedModel`: wraps a float model once; `apply(policy)` switches its formats in place."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.quant.batch_norm import FoldedBatchNorm, foldable_batch_norms
from haq.quant.choice import check_no_twins, copy_of, layer_names, prepared_for
from haq.quant.formats.base import Quantizer
from haq.quant.layers import FLOAT, InputCache, QuantizedLayer
from haq.quant.nested import call_model, pick_device, to_device
from haq.quant.settings import QuantizationConfig
from haq.quant.weights import WeightQuantizer
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.kinds import module_names
from haq.values.policy import Policy

_DEFAULTS = {
    "weight_granularity": "channel",
    "weight_scheme": "symmetric",
    "activation_scheme": "affine",
    "weight_calibration": "balanced",
    "activation_calibration": "mse",
}


class _DeviceDefaults(Protocol):
    """What a device profile may say; `None` leaves the choice to the defaults."""

    @property
    def weight_granularity(self) -> Any: ...
    @property
    def weight_scheme(self) -> Any: ...
    @property
    def activation_scheme(self) -> Any: ...
    @property
    def weight_calibration(self) -> Any: ...
    @property
    def activation_calibration(self) -> Any: ...


def resolve(config: QuantizationConfig, device: _DeviceDefaults | None = None) -> QuantizationConfig:
    """`config` with what it leaves out filled in: from the device, else from the defaults that `config` documents."""
    chosen = {
        key: next(value for value in (getattr(config, key), getattr(device, key, None), default) if value is not None)
        for key, default in _DEFAULTS.items()
    }
    return config.model_copy(update=chosen)


class QuantizedModel:
    """A float model whose layers' formats switch in place.

    The wrapped copy shares the float model's parameters (unless it moves to another device) and has its own buffers;
    the float model itself is never changed. One pass over the calibration data collects a histogram of what each layer
    reads; ranges follow from it per format when first asked for, as do quantized weights, and both are kept. Memory: 64
    KB per layer, and one copy of a layer's weight per format used.

    The float model must not be trained while it is wrapped: quantized weights would go stale.

    Args:
        model: any module; evaluation mode is set on the copy.
        quantization: `None` fields take their defaults.
        calibration: `(inputs, targets)` batches; `inputs` is a tensor, a tuple of arguments or a dict of keyword
            arguments. Kept, for the compensations.
        layers: qualified names; default: every module of a kind in `haq.values.kinds` that the model calls.
        device: `cpu`, `cuda`, ..., or `auto`.

    Attributes:
        module: the callable copy.
        layers: name -> module in that copy, in the model's order. Forward hooks on them work as usual and see
            quantized inputs.
        policy: what is applied now, `None` for float.
        quantization: the settings, without `None`.
        calibration: the calibration inputs, on the device.
        batch_norms: name -> each batch norm that has running statistics.
        input_shapes: layer -> shape of what it reads, of one sample, on its first call.
        repaired: layer -> the weight that `repair_weight` put in, until the next `apply`.
        input_leaders: layer -> the first layer that reads the very same tensors; itself where no other does.

    Raises:
        InputError: a name is no quantizable layer or is never called, two layers share one weight, there is no data, or
            activations are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        quantization: QuantizationConfig | None = None,
        calibration: Iterable[tuple[Any, Any]],
        layers: Iterable[str] | None = None,
        device: str = "cpu",
    ) -> None:
        self.quantization = resolve(quantization or QuantizationConfig())
        self.device = pick_device(device)
        layers = None if layers is None else list(layers)
        self.module = copy_of(prepared_for(model, layers), self.device)
        self.policy: Policy | None = None
        self.calibration: tuple[Any, ...] = tuple(self.to_device(inputs) for inputs, _ in calibration)
        if not self.calibration:
            raise InputError("no calibration data; give at least one batch of inputs and targets")
        cache = InputCache()
        names = layer_names(self.module, layers)
        check_no_twins(self.module, names)
        self._layers = {
            name: QuantizedLayer(name, self.module.get_submodule(name), quantization=self.quantization, cache=cache)
            for name in names
        }
        self.input_shapes: dict[str, torch.Size] = {}
        self.input_leaders: dict[str, str] = {}
        self._observe()
        self._drop_uncalled(required=layers is not None)
        if self.quantization.batch_norm == "fold":
            self._fold()
        self.module.register_forward_hook(cache.clear_after, always_call=True)
        self.batch_norms = {
            name: child
            for name, child in self.module.named_modules()
            if isinstance(child, _BatchNorm) and child.running_mean is not None
        }
        self._float_statistics = {name: _statistics(norm) for name, norm in self.batch_norms.items()}
        self._statistics_replaced = False
        self.repaired: dict[str, Tensor] = {}

    @property
    def layers(self) -> dict[str, nn.Module]:
        return {name: layer.module for name, layer in self._layers.items()}

    def __call__(self, inputs: Any) -> Any:
        """The outputs for one batch of inputs on this model's device."""
        return call_model(self.module, inputs)

    def to_device(self, value: Any) -> Any:
        """`value`, its tensors on this model's device."""
        return to_device(value, self.device)

    def apply(self, policy: Policy | None) -> None:
        """Switch all layers; undoes compensations. `None` (or fp32 everywhere) gives the float model's own outputs.

        Raises:
            InputError: the policy is for another model; lists missing and unknown layers.
        """
        if policy is not None:
            try:
                policy.check_layers(self._layers)
            except ValueError as error:
                raise InputError(str(error)) from error
        if self._statistics_replaced:
            self.set_batch_norm_statistics(self._float_statistics)
            self._statistics_replaced = False
        self.repaired.clear()
        for name, layer in self._layers.items():
            layer.apply(FLOAT if policy is None else policy[name])
        self.policy = policy

    def set_precision(self, layer: str, precision: Precision | None) -> None:
        """Switch one layer only; `None` makes it float. Undoes bias correction of this layer, nothing else."""
        chosen = self._layer(layer)
        chosen.apply(precision or FLOAT)
        self.repaired.pop(layer, None)
        precisions = {name: other.precision for name, other in self._layers.items()}
        self.policy = None if set(precisions.values()) == {FLOAT} else Policy(precisions)

    def weight_quantizer(self, layer: str, fmt: Format) -> WeightQuantizer:
        """The calibrated weight quantizer: scales and zero points per block of rows."""
        return self._layer(layer).weight_quantizer(fmt)

    def float_weight(self, layer: str) -> Tensor:
        """What `quantized_weight` is the quantization of: the layer's weight, batch norm folded in where it is."""
        return self._layer(layer).float_weight.detach()

    def quantized_weight(self, layer: str, fmt: Format) -> Tensor:
        """The weight of `layer` in format `fmt`, as float values; made once, not to be written to."""
        return self._layer(layer).quantized_weight(fmt)

    def activation_quantizer(self, layer: str, fmt: Format) -> Quantizer:
        """Quantizes what `layer` reads, in the range calibrated for `fmt`."""
        return self._layer(layer).input_quantizer(fmt)

    def repair_weight(self, layer: str, weight: Tensor) -> None:
        """Let `layer` multiply with `weight`, values of its format, until it is switched again."""
        self.repaired[layer] = weight
        self._layer(layer).use_weight(weight)

    def shift_bias(self, layer: str, shift: Tensor) -> None:
        """Add `shift`, `[out_channels]`, to the bias of `layer` until it is switched again."""
        self._layer(layer).shift_bias(shift)

    def set_batch_norm_statistics(self, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Set running mean and variance of batch norms, by name, until the next `apply`."""
        self._statistics_replaced = True
        for name, (mean, variance) in statistics.items():
            norm = self.batch_norms[name]
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)

    def replay(
        self,
        layer: str,
        precision: Precision,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """What `layer` returns for these arguments in `precision`, whatever is applied. Hooks do not run.

        Args:
            weight: in place of the quantized one: a repaired one.
        """
        return self._layer(layer).replay(precision, args, dict(kwargs or {}), weight=weight)

    def float_bias(self, layer: str) -> Tensor | None:
        """The bias that goes with `float_weight`."""
        bias = self._layer(layer).float_bias
        return None if bias is None else bias.detach()

    def behind_batch_norm(self, layer: str, precision: Precision, mean: Tensor) -> Tensor:
        """A mean float output of `layer`, `[out_channels]`, as it is behind a batch norm folded in `precision`."""
        return self._layer(layer).behind_batch_norm(precision, mean)

    def _layer(self, name: str) -> QuantizedLayer:
        if name not in self._layers:
            raise InputError(f"no quantized layer {name!r}; the model has {', '.join(self._layers)}")
        return self._layers[name]

    def _observe(self) -> None:
        """One float pass over the calibration data: what does each layer read, and who reads the same tensor?"""
        readers: dict[int, tuple[weakref.ref[Tensor], QuantizedLayer]] = {}
        reads: dict[str, list[str]] = {name: [] for name in self._layers}

        def hook_for(layer: QuantizedLayer) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
                layer.called = True
                if layer.gathers:
                    self.input_shapes.setdefault(layer.name, torch.Size())
                    reads[layer.name].append(layer.name)
                    return
                x = args[0] if args else kwargs["input"]
                known = readers.get(id(x))
                if known is not None and known[0]() is x:
                    known[1].reads_shared = layer.reads_shared = True
                else:
                    known = readers[id(x)] = (weakref.ref(x), layer)
                self.input_shapes.setdefault(layer.name, x.shape[1:])
                reads[layer.name].append(known[1].name)
                try:
                    layer.seen.update(x)
                except ValueError as error:
                    raise InputError(
                        f"layer {layer.name!r}: its input is not finite on the calibration data; check the data and "
                        "the checkpoint"
                    ) from error

            return hook

        handles = [
            layer.module.register_forward_pre_hook(hook_for(layer), with_kwargs=True) for layer in self._layers.values()
        ]
        try:
            with torch.no_grad():
                for inputs in self.calibration:
                    self(inputs)
                    readers.clear()
        finally:
            for handle in handles:
                handle.remove()
        for name, leaders in reads.items():
            same = len(set(leaders)) == 1 and reads[leaders[0]] == leaders
            self.input_leaders[name] = leaders[0] if same else name

    def _drop_uncalled(self, *, required: bool) -> None:
        uncalled = [name for name, layer in self._layers.items() if not layer.called]
        if required and uncalled:
            raise InputError(
                f"layers never called on the calibration data: {', '.join(uncalled)}; leave them out of the layers"
            )
        for name in uncalled:
            del self._layers[name]
        if not self._layers:
            raise InputError(f"the model calls no {module_names()}: nothing to quantize")

    def _fold(self) -> None:
        pairs = foldable_batch_norms(self.module, self.layers, lambda: self(self.calibration[0]))
        for name, batch_norm in pairs.items():
            layer = self._layers[name]
            layer.fold(FoldedBatchNorm(self.module, batch_norm, layer.module))


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.clone(), norm.running_var.clone()
