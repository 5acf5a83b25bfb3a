"""New activation ranges for the members of a family, from inputs without labels, and whether they are better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from haq.adaptive.sessions import load_onnx
from haq.deployed.state import ModelState, restore
from haq.quant.calibration import calibrate_activation
from haq.quant.formats.half import Identity
from haq.quant.histogram import Histogram
from haq.quant.layers import channel_axis
from haq.quant.nested import call_model, tensors_in
from haq.values.errors import InputError

_GAIN = 0.02
"""Share by which the error must fall."""


def renewed(model: nn.Module, state: ModelState, inputs: Sequence[Any]) -> ModelState:
    """The state with the ranges that the experiment's own calibration finds on `inputs`; weights stay.

    Ranges are of what layers read when other activations are not quantized, so that one that is too narrow does not
    hide what the next one would have to hold. Layers that read the model's inputs keep theirs: see `opened`.

    Args:
        model: the float architecture.
        state: of a member.
        inputs: batches.

    Raises:
        InputError: a layer read nothing but zeros, so that its range would be empty, or values that are not finite.
    """
    free = opened(model, state, inputs[0])
    module, seen = restore(model, free), {}
    for name, layer in state.layers.items():
        if layer.input is not free.layers[name].input:
            seen[name] = Histogram()
            module.get_submodule(name).register_forward_pre_hook(_Watch(seen[name]), with_kwargs=True)
    with torch.no_grad():
        for batch in inputs:
            try:
                call_model(module, batch)
            except ValueError as error:
                raise InputError(f"no range can be found: {error}") from error
    settings, layers = state.quantization, dict(state.layers)
    for name, histogram in seen.items():
        if histogram.reach == 0.0:
            raise InputError(f"layer {name}: read nothing but zeros; its range would be empty")
        quantizer = calibrate_activation(
            histogram,
            layers[name].precision.activation,
            scheme=settings.activation_scheme or "affine",
            method=settings.activation_calibration or "mse",
            percentile=settings.percentile,
            decay=settings.ema_decay,
            axis=channel_axis(module.get_submodule(name)),
        )
        layers[name] = replace(layers[name], input=quantizer)
    return replace(state, layers=layers)


def opened(model: nn.Module, state: ModelState, inputs: Any) -> ModelState:
    """The state with activations in float, but for the layers that read the model's inputs.

    The range of inputs is that of the sensor: what lies beyond it was never trained on, and cutting it off keeps the
    network where it was trained (a gain of 4 costs the digits 7 points with the cut, and 51 without).

    Args:
        model: the float architecture.
        state: of a member.
        inputs: one batch, to see which layers read it.
    """
    module, first = restore(model, state, hooks=False), set()
    given = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(inputs)}

    def look(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read = args[0] if args else kwargs["input"]
            if read.untyped_storage().data_ptr() in given:
                first.add(name)

        return hook

    for name in state.layers:
        module.get_submodule(name).register_forward_pre_hook(look(name), with_kwargs=True)
    with torch.no_grad():
        call_model(module, inputs)
    layers = {
        name: layer if name in first or isinstance(layer.input, Identity) else replace(layer, input=Identity())
        for name, layer in state.layers.items()
    }
    return replace(state, layers=layers)


class _Watch:
    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._histogram.update(args[0] if args else kwargs["input"])


@dataclass(frozen=True)
class Judged:
    """One version on held-back inputs, averages over its members.

    Attributes:
        error: ||y - y'|| / ||y'||, y' being what the most precise member gives when it is `opened`.
        agreement: share of samples with the class of y'; 1 where outputs are no classes.
    """

    error: float
    agreement: float

    def better_than(self, other: Judged, samples: int) -> bool:
        """Whether the error is lower by 2 % or more, and not more than one sample agrees less."""
        return self.error < (1 - _GAIN) * other.error and self.agreement >= other.agreement - 1.0 / samples


def judged(folder: Path, wanted: Sequence[Tensor], inputs: Sequence[Any]) -> Judged:
    """The members in `folder`, in ONNX Runtime, beside `reference` outputs of the same batches."""
    family = load_onnx(folder)
    errors, agreements = [], []
    reference = torch.cat([one.flatten(1) for one in wanted])
    for member in range(len(family.members)):
        found = torch.cat([next(iter(tensors_in(family.predict(batch, member)))).flatten(1) for batch in inputs])
        errors.append(float((found - reference).norm() / reference.norm().clamp(min=1e-12)))
        classes = wanted[0].dim() == 2 and wanted[0].shape[1] > 1
        same = (found.argmax(dim=1) == reference.argmax(dim=1)).float().mean() if classes else torch.ones(())
        agreements.append(float(same))
    return Judged(sum(errors) / len(errors), sum(agreements) / len(agreements))


def reference(model: nn.Module, state: ModelState, inputs: Sequence[Any]) -> list[Tensor]:
    """First outputs of a state that is `opened`."""
    module = restore(model, opened(model, state, inputs[0]))
    with torch.no_grad():
        return [next(iter(tensors_in(call_model(module, batch)))) for batch in inputs]
