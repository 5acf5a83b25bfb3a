"""One layer of a quantized model: which formats its weights and its input have now."""

from __future__ import annotations

import weakref
from typing import Any, cast

import torch
from torch import Tensor, nn

from haq.quant.batch_norm import FoldedBatchNorm
from haq.quant.calibration import calibrate_activation
from haq.quant.formats.base import Quantizer
from haq.quant.formats.half import Identity, float_quantizer
from haq.quant.histogram import Histogram
from haq.quant.settings import QuantizationConfig
from haq.quant.weights import WeightLayout, WeightQuantizer
from haq.trace.layers import kind_of
from haq.values.errors import InputError
from haq.values.formats import Format, Precision

FLOAT = Precision.parse("wfp32afp32")


def lay_out(weight: Tensor) -> Tensor:
    """A copy in channels-last memory where `weight` has four dimensions: its layout decides which kernel runs."""
    layout = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
    return torch.empty_like(weight, memory_format=layout).copy_(weight)


def channel_axis(module: nn.Module) -> int:
    """Where the channels of what a layer reads lie, counted from the end: the inputs of one sum."""
    return -1 - len(getattr(module, "kernel_size", ()))


class QuantizedLayer:
    """Switches a module between its float weight and quantized ones, and quantizes what it reads.

    The module keeps its class, forward and hooks: `weight` (with a folded batch norm `bias` too) is replaced in place,
    and a forward pre-hook that runs before all others quantizes the first argument. The quantized weight of each
    format is made once and kept, so memory grows by one weight tensor per format used.

    Attributes:
        name: qualified module name.
        module: the module of the wrapped copy.
        precision: the formats in use.
        seen: what the module read during calibration, over all its calls.
        reads_shared: whether another layer reads the same tensor.
        gathers: whether it reads indices, which have no format, and adds no bias.
        called: whether calibration reached it.
    """

    def __init__(self, name: str, module: nn.Module, *, quantization: QuantizationConfig, cache: InputCache) -> None:
        weight = module._parameters.get("weight")
        if weight is None:
            raise InputError(
                f"layer {name!r}: its weight is computed by a parametrization or a weight norm; make it a plain "
                "parameter first (torch.nn.utils.parametrize.remove_parametrizations or remove_weight_norm)"
            )
        self.name = name
        self.module = module
        self.precision = FLOAT
        self.seen = Histogram()
        kind = kind_of(module)
        self.gathers = kind is not None and kind.gathers
        self.called = False
        self.reads_shared = False
        self.batch_norm: FoldedBatchNorm | None = None
        self._float = (weight, module._parameters.setdefault("bias", None))
        self._quantization = quantization
        self._cache = cache
        self._weight_quantizers: dict[Format, WeightQuantizer] = {}
        self._weights: dict[Format, nn.Parameter] = {}
        self._input_quantizers: dict[Format, Quantizer] = {}
        self._input_quantizer: Quantizer = Identity()
        module.register_forward_pre_hook(self._quantize_input, prepend=True, with_kwargs=True)

    @property
    def float_weight(self) -> Tensor:
        """What is quantized: the float model's weight, or with batch norm folded in."""
        return self._float[0] if self.batch_norm is None else self.batch_norm.weight

    @property
    def float_bias(self) -> nn.Parameter | None:
        """The bias that goes with `float_weight`."""
        return self._float[1] if self.batch_norm is None else self.batch_norm.bias

    def fold(self, batch_norm: FoldedBatchNorm) -> None:
        """From now on, quantized weights have `batch_norm` folded in, which is passed over while they are in use."""
        self.batch_norm = batch_norm
        self._weight_quantizers.clear()
        self._weights.clear()

    def apply(self, precision: Precision) -> None:
        """Switch. With fp32 weights the float model's own weight, bias and batch norm are back in place."""
        self._input_quantizer = self.input_quantizer(precision.activation)
        is_float = isinstance(float_quantizer(precision.weight), Identity)
        parameters = self.module._parameters
        parameters["weight"] = self._float[0] if is_float else self._quantized(precision.weight)
        parameters["bias"] = self._float[1] if is_float else self.float_bias
        if self.batch_norm is not None:
            self.batch_norm.skip(not is_float)
        self.precision = precision

    def use_weight(self, weight: Tensor) -> None:
        """Multiply with `weight` until the next `apply`."""
        self.module._parameters["weight"] = nn.Parameter(lay_out(weight), requires_grad=False)

    def replay(
        self, precision: Precision, args: tuple[Any, ...], kwargs: dict[str, Any], *, weight: Tensor | None = None
    ) -> Tensor:
        """What the module returns in `precision` for these arguments; hooks do not run, nothing stays switched."""
        parameters = self.module._parameters
        state = parameters["weight"], parameters["bias"], self._input_quantizer, self.precision
        skipped = self.batch_norm is not None and self.batch_norm.skipped
        self.apply(precision)
        if weight is not None:
            self.use_weight(weight)
        try:
            changed = self._quantize_input(self.module, args, kwargs)
            args, kwargs = (args, kwargs) if changed is None else changed
            return cast(Tensor, self.module.forward(*args, **kwargs))
        finally:
            parameters["weight"], parameters["bias"], self._input_quantizer, self.precision = state
            if self.batch_norm is not None:
                self.batch_norm.skip(skipped)

    def weight_quantizer(self, fmt: Format) -> WeightQuantizer:
        """The calibrated weight quantizer of `fmt`."""
        if fmt not in self._weight_quantizers:
            weight = self.float_weight.detach()
            layout = WeightLayout.of(self.module, weight, self._quantization, fmt)
            self._weight_quantizers[fmt] = WeightQuantizer.calibrate(weight, fmt, layout, self._quantization)
        return self._weight_quantizers[fmt]

    def quantized_weight(self, fmt: Format) -> Tensor:
        """The weight in format `fmt`, shaped like the float one; made once, not to be written to."""
        return self._quantized(fmt).detach()

    def input_quantizer(self, fmt: Format) -> Quantizer:
        """The calibrated quantizer of what the layer reads."""
        if self.gathers:
            return Identity()
        if fmt not in self._input_quantizers:
            self._input_quantizers[fmt] = calibrate_activation(
                self.seen,
                fmt,
                scheme=self._quantization.activation_scheme or "affine",
                method=self._quantization.activation_calibration or "mse",
                percentile=self._quantization.percentile,
                decay=self._quantization.ema_decay,
                axis=channel_axis(self.module),
            )
        return self._input_quantizers[fmt]

    def shift_bias(self, shift: Tensor) -> None:
        """Add `shift`, `[out_channels]`, to the bias in use, until the next `apply`; a table has none."""
        if self.gathers:
            return
        bias = self.module._parameters.get("bias")
        shifted = shift if bias is None else bias.detach() + shift
        self.module._parameters["bias"] = nn.Parameter(shifted, requires_grad=False)

    def behind_batch_norm(self, precision: Precision, mean: Tensor) -> Tensor:
        """Where in `precision` batch norm is folded in: the mean behind it of outputs whose mean was `mean`."""
        if self.batch_norm is None or isinstance(float_quantizer(precision.weight), Identity):
            return mean
        return mean * self.batch_norm.scale + self.batch_norm.shift

    def _quantized(self, fmt: Format) -> nn.Parameter:
        if fmt not in self._weights:
            quantized = self.weight_quantizer(fmt)(self.float_weight.detach())
            self._weights[fmt] = nn.Parameter(lay_out(quantized), requires_grad=False)
        return self._weights[fmt]

    def _quantize_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        quantizer = self._input_quantizer
        if isinstance(quantizer, Identity):
            return None
        if not args:
            return args, {**kwargs, "input": self._read(kwargs["input"], quantizer)}
        return (self._read(args[0], quantizer), *args[1:]), kwargs

    def _read(self, x: Tensor, quantizer: Quantizer) -> Tensor:
        return self._cache.quantize(x, quantizer) if self.reads_shared else quantizer(x)


class InputCache:
    """Quantizes a tensor that several layers read once per quantizer.

    Entries die with their tensor, at the end of a forward pass, and when the tensor is written to. Tensors that do not
    count their versions (inference mode) or that need gradients are quantized anew.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], int, dict[Quantizer, Tensor]]] = {}

    def quantize(self, x: Tensor, quantizer: Quantizer) -> Tensor:
        if x.is_inference() or (x.requires_grad and torch.is_grad_enabled()):
            return quantizer(x)
        entry = self._entries.get(id(x))
        if entry is None or entry[0]() is not x or entry[1] != x._version:
            key = id(x)
            entry = (weakref.ref(x, lambda _: self._entries.pop(key, None)), x._version, {})
            self._entries[key] = entry
        if quantizer not in entry[2]:
            entry[2][quantizer] = quantizer(x)
        return entry[2][quantizer]

    def clear_after(self, *_: Any) -> None:
        """A forward hook of the whole model."""
        self._entries.clear()
