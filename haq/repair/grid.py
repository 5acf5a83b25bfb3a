"""The values that a layer's weight may take, element by element, and what the layer reads."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from haq.quant import QuantizedModel
from haq.quant.formats.integer import PerRowInteger
from haq.values.formats import Format, Precision


@dataclass(frozen=True, eq=False)
class Grid:
    """Values (code - zero) * scale with codes from `low` to `high`; scale and zero are shaped like the weight."""

    scale: Tensor
    zero: Tensor
    low: int
    high: int

    @classmethod
    def of(cls, model: QuantizedModel, layer: str, fmt: Format) -> Grid | None:
        """Of a layer's weight in an integer format; `None` where another format has no such grid."""
        quantizer = model.weight_quantizer(layer, fmt)
        blocks = [block for block in quantizer.blocks if isinstance(block, PerRowInteger)]
        if not blocks or len(blocks) < len(quantizer.blocks):
            return None
        rows = quantizer.layout.split(model.float_weight(layer))
        pairs = list(zip(blocks, rows, strict=True))
        scale = quantizer.layout.join(tuple(block.scale.expand_as(row) for block, row in pairs))
        zero = quantizer.layout.join(tuple(block.zero_point.to(row.dtype).expand_as(row) for block, row in pairs))
        return cls(scale, zero, blocks[0].quant_min, blocks[0].quant_max)

    def nearest(self, weight: Tensor) -> Tensor:
        """The nearest value of the grid."""
        return self.at((weight / self.scale).round() + self.zero)

    def at(self, codes: Tensor) -> Tensor:
        """The values of codes, clamped."""
        return (codes.clamp(self.low, self.high) - self.zero) * self.scale


class _SeenEnough(Exception):
    """Ends a pass that has come to the layer."""


@dataclass(frozen=True, eq=False)
class LayerData:
    """What a layer reads in the float model over the calibration data.

    Attributes:
        inputs: one tensor for each call.
        quantized: the same, quantized as the policy has it.
    """

    inputs: tuple[Tensor, ...]
    quantized: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: QuantizedModel, layer: str, precision: Precision) -> LayerData:
        """Run the float model over the calibration data; `model` is left in float."""
        seen: list[Tensor] = []
        wanted = 0  # calls in a pass, known after the first: later passes end there

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append((args[0] if args else kwargs["input"]).detach())
            if wanted and len(seen) % wanted == 0:
                raise _SeenEnough

        model.apply(None)
        handle = model.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)
        try:
            with torch.no_grad():
                for inputs in model.calibration:
                    with suppress(_SeenEnough):
                        model(inputs)
                    wanted = wanted or len(seen)
        finally:
            handle.remove()
        quantizer = model.activation_quantizer(layer, precision.activation)
        with torch.no_grad():
            return cls(tuple(seen), tuple(quantizer(x) for x in seen))


def outputs(module: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """What a layer returns for `x` with this weight and bias; hooks do not run, gradients flow."""
    kept = module._parameters["weight"], module._parameters.get("bias")
    module._parameters["weight"], module._parameters["bias"] = weight, bias  # type: ignore[assignment]
    try:
        found: Tensor = module.forward(x)
        return found
    finally:
        module._parameters["weight"], module._parameters["bias"] = kept
