"""Where a trainable quantizer sits in a layer: on its weight, or on what it reads."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from haq.quant.formats.base import Quantizer
from haq.quant.formats.integer import HALF_TYPES
from haq.quant.weights import WeightLayout, WeightQuantizer
from haq.training.learned_quantizers import TrainableQuantizer

Make = Callable[[Quantizer, int | None], tuple[Hashable, Callable[[], TrainableQuantizer]]]
"""A calibrated quantizer and its rows (`None`: an activation) -> its kind, and how to make a trainable one of it."""


class Slot(nn.Module):
    """Holds the quantizers in use; those of another kind are kept, so that captured graphs stay valid."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.active = nn.ModuleList()
        self._make = make
        self._kept: dict[Hashable, TrainableQuantizer] = {}

    def _take(self, calibrated: list[Quantizer], values: list[Tensor], device: torch.device, rows: bool) -> None:
        chosen = []
        for index, (quantizer, value) in enumerate(zip(calibrated, values, strict=True)):
            kind, make = self._make(quantizer, len(value) if rows else None)
            key = (index, kind, value.shape[0] if rows else None)
            if key not in self._kept:
                self._kept[key] = make().to(device)
            self._kept[key].start(quantizer, value)
            chosen.append(self._kept[key])
        if [id(old) for old in self.active] != [id(new) for new in chosen]:
            self.active = nn.ModuleList(chosen)

    def state(self) -> list[dict[str, Tensor]]:
        """A copy of the quantizers' parameters and buffers."""
        return [{key: value.clone() for key, value in quantizer.state_dict().items()} for quantizer in self.active]

    def load(self, state: list[dict[str, Tensor]]) -> None:
        """Set, in place, what `state` returned for the same format."""
        for quantizer, saved in zip(self.active, state, strict=True):
            quantizer.load_state_dict(saved)


class WeightSlot(Slot):
    """A parametrization of a layer's weight: its fake quantization."""

    def __init__(self, layout: WeightLayout, make: Make) -> None:
        super().__init__(make)
        self._layout = layout  # of the format in use

    def start(self, calibrated: WeightQuantizer, weight: Tensor) -> None:
        """Take the format of `calibrated` and start from it."""
        weight = weight.detach().float()
        if calibrated.layout != self._layout:  # an equal one stays, so that captured graphs stay valid
            self._layout = calibrated.layout
        self._take(list(calibrated.blocks), list(self._layout.split(weight)), weight.device, rows=True)

    def forward(self, weight: Tensor) -> Tensor:
        if not len(self.active):  # not started yet
            return weight
        if weight.dtype in HALF_TYPES:
            return self(weight.float()).to(weight.dtype)  # type: ignore[no-any-return]
        if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
            # The memory format decides which convolution kernels run.
            return self._channels_last(weight)
        return self._quantized(weight)

    def fixed(self, weight: Tensor) -> tuple[WeightQuantizer, Tensor]:
        """What training has come to: the quantizer to deploy, and `weight` on its levels, in float32."""
        weight = weight.detach().float()
        parts = zip(self.active, self._layout.split(weight), strict=True)
        blocks = tuple(quantizer.fixed(rows) for quantizer, rows in parts)  # type: ignore[operator]
        return WeightQuantizer(self._layout, blocks), self._quantized(weight)

    def _quantized(self, weight: Tensor) -> Tensor:
        parts = zip(self.active, self._layout.split(weight), strict=True)
        return self._layout.join(tuple(quantizer(rows) for quantizer, rows in parts))

    def _channels_last(self, weight: Tensor) -> Tensor:
        if not self._layout.rows_in_any_order:
            return self._quantized(weight).contiguous(memory_format=torch.channels_last)
        (quantizer,) = self.active
        stored = weight.permute(0, 2, 3, 1)  # as it lies in memory: nothing is copied
        rows = 1 if self._layout.granularity == "tensor" else len(weight)
        return quantizer(stored.reshape(rows, -1)).view(stored.shape).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class InputSlot(Slot):
    """Quantizes what one or several layers read; a tensor that several read, once."""

    def __init__(self, make: Make) -> None:
        super().__init__(make)
        self.readers = 1
        self._last: tuple[Tensor, Tensor] | None = None

    def start(self, calibrated: Quantizer, shape: torch.Size, device: torch.device) -> None:
        """Take the format of `calibrated` and start from it; `shape` is that of one sample."""
        self._take([calibrated], [torch.empty(shape, device="meta")], device, rows=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # Made again for its gradient: else it is kept beside `x`, which a residual branch needs, too.
            return checkpoint(self.quantize, x, use_reentrant=False)  # type: ignore[no-any-return]
        if self.readers == 1:
            return self.quantize(x)
        if self._last is None or self._last[0] is not x:
            self._last = (x, self.quantize(x))
        return self._last[1]

    def quantize(self, x: Tensor) -> Tensor:
        """Fake quantization of `x`."""
        (quantizer,) = self.active
        return quantizer(x)  # type: ignore[no-any-return]

    def fixed(self) -> Quantizer:
        """What training has come to: the quantizer to deploy."""
        (quantizer,) = self.active
        return quantizer.fixed(torch.empty(0))  # type: ignore[no-any-return, operator]

    def forget(self, *_: Any) -> None:
        """Let go of the last tensor; a forward hook of the whole model."""
        self._last = None
