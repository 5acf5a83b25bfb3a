"""A model whose layers compute with mixtures of formats: what the differentiable search learns from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from haq.quant import QuantizedModel
from haq.quant.nested import Batches, Loss
from haq.quant.settings import QuantizationConfig
from haq.values.errors import InputError
from haq.values.formats import Format, Precision

Floats = NDArray[np.float64]


def check_not_folded(quantization: QuantizationConfig) -> None:
    """Refuse weights that have the batch norm folded in.

    Raises:
        InputError: they have.
    """
    if quantization.batch_norm == "fold":
        raise InputError(
            "quantization.batch_norm = 'fold': strategy 'differentiable' mixes weights before the batch norm; take "
            "'keep' or 'reestimate'"
        )


class MixedModel:
    """The float model with each layer's weight and input replaced by a mixture of their quantized versions.

    Rounding passes gradients straight through. Batch norm keeps the float model's statistics.

    Args:
        model: the float model; copied.
        quantized: the same model wrapped: gives layers and calibrated quantizers.
        choices: layer -> the precisions that are mixed.
        split: what to train on.
        loss: `(outputs, targets)` -> scalar.
        batch_size: samples per step.

    Raises:
        InputError: batch norm was folded into the quantized weights.
    """

    def __init__(
        self,
        model: nn.Module,
        quantized: QuantizedModel,
        *,
        choices: Mapping[str, Sequence[Precision]],
        split: Batches,
        loss: Loss,
        batch_size: int,
    ) -> None:
        check_not_folded(quantized.quantization)
        self._quantized, self._loss = quantized, loss
        self._module = copy.deepcopy(model).to(quantized.device).eval().requires_grad_(False)
        self._batches = list(split.batches(batch_size))
        self._layers = {name: _MixedLayer(name, quantized, choices[name]) for name in quantized.layers}
        for name, layer in self._layers.items():
            self._module.get_submodule(name).register_forward_pre_hook(layer.mix_input, with_kwargs=True)

    def __call__(
        self, mixture: Mapping[str, Floats], step: int, weight_lr: float = 0.0
    ) -> tuple[float, dict[str, Floats]]:
        """The loss on batch number `step` (they come round again), and its derivative by each part of the mixture.

        Args:
            mixture: layer -> the part of each choice.
            step: number of the batch.
            weight_lr: step size of this model's own weights; they take one step of gradient descent.
        """
        inputs, targets = self._quantized.to_device(self._batches[step % len(self._batches)])
        for name, layer in self._layers.items():
            layer.begin(torch.tensor(mixture[name], dtype=torch.float32, device=self._quantized.device), weight_lr > 0)
        weights = {f"{name}.weight": layer.mixed_weight() for name, layer in self._layers.items()}
        arguments, keywords = ((), dict(inputs)) if isinstance(inputs, Mapping) else (_tuple(inputs), {})
        loss = self._loss(functional_call(self._module, weights, arguments, keywords), targets)
        torch.autograd.backward(loss)
        for layer in self._layers.values():
            layer.descend(weight_lr)
        return float(loss.detach()), {name: layer.slope() for name, layer in self._layers.items()}


class _MixedLayer:
    """The weight of one layer, its quantizers, and the parts that they have in the mixture."""

    def __init__(self, name: str, quantized: QuantizedModel, choices: Sequence[Precision]) -> None:
        weights = list(dict.fromkeys(precision.weight for precision in choices))
        activations = list(dict.fromkeys(precision.activation for precision in choices))
        self._weight = quantized.float_weight(name).clone()
        self._weight_quantizers = [quantized.weight_quantizer(name, fmt) for fmt in weights]
        self._input_quantizers = [quantized.activation_quantizer(name, fmt) for fmt in activations]
        self._of_weight = _membership([precision.weight for precision in choices], weights).to(quantized.device)
        self._of_input = _membership([precision.activation for precision in choices], activations).to(quantized.device)

    def begin(self, parts: Tensor, trains: bool) -> None:
        """Take up the parts of the choices, `[choices]`."""
        self._parts = parts.requires_grad_()
        self._weight = self._weight.detach().requires_grad_(trains)
        self._input_parts = self._parts @ self._of_input

    def mixed_weight(self) -> Tensor:
        return _mixed(self._weight, self._parts @ self._of_weight, self._weight_quantizers)

    def mix_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook."""
        x = _mixed(args[0] if args else kwargs["input"], self._input_parts, self._input_quantizers)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})

    def descend(self, rate: float) -> None:
        if self._weight.grad is not None:
            self._weight = self._weight.detach() - rate * self._weight.grad

    def slope(self) -> Floats:
        assert self._parts.grad is not None
        return self._parts.grad.double().cpu().numpy()


def _mixed(x: Tensor, parts: Tensor, quantizers: Sequence[Any]) -> Tensor:
    """The sum of the quantized versions of `x`, each times its part; as a function of `x` its slope is 1."""
    fixed = x.detach()
    versions = [quantizer(fixed) for quantizer in quantizers]
    mixture = torch.stack([part * version for part, version in zip(parts, versions, strict=True)]).sum(dim=0)
    return mixture + (x - fixed) if x.requires_grad else mixture


def _membership(formats: Sequence[Format], distinct: Sequence[Format]) -> Tensor:
    """`[choices, distinct]`: 1 where the choice has the format."""
    return torch.tensor([[float(own == fmt) for fmt in distinct] for own in formats])


def _tuple(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)
