"""Weights as matrices with one scale per row, and back."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from haq.quant.calibration import calibrate_weight
from haq.quant.formats.base import Quantizer
from haq.quant.formats.integer import HALF_TYPES
from haq.quant.settings import QuantizationConfig
from haq.trace.layers import kind_of
from haq.values.errors import InputError
from haq.values.formats import Format


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """How the weight of a layer falls into rows that share a scale.

    Attributes:
        shape: of the weight, as torch stores it.
        transposed_groups: convolution groups of a transposed convolution, whose output channels lie along dimension 1
            within each group; 0 for layers whose output channels are dimension 0.
        granularity: `tensor`, `channel` (a row per output channel) or `group`.
        ordered: whether the format cares which weights of a row lie side by side.
        group_size: values of an output channel that share a scale, along its flattened input dimensions; where it
            does not divide them, the last group of each channel is shorter and has a scale of its own.
    """

    shape: tuple[int, ...]
    transposed_groups: int
    granularity: str
    group_size: int
    ordered: bool = False

    @classmethod
    def of(cls, module: nn.Module, weight: Tensor, quantization: QuantizationConfig, fmt: Format) -> WeightLayout:
        """How `weight` of `module` falls into rows in format `fmt`, whose own group size goes before the settings."""
        kind = kind_of(module)
        groups = int(getattr(module, "groups", 1)) if kind is not None and kind.transposed else 0
        granularity = quantization.weight_granularity or "channel"
        if fmt.group_size is not None:
            return cls(tuple(weight.shape), groups, "group", fmt.group_size)
        if fmt.family.is_ordered:
            return cls(tuple(weight.shape), groups, "channel", quantization.group_size, ordered=True)
        return cls(tuple(weight.shape), groups, granularity, quantization.group_size)

    @property
    def rows_in_any_order(self) -> bool:
        """Whether a row is all of an output channel, or of the tensor, so that its order does not count."""
        return self.granularity != "group" and not self.transposed_groups and not self.ordered

    def split(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Matrices `[rows, n]`: one, or with a remainder group two, the second with the shorter rows."""
        channels = self._channels(weight)
        if self.granularity == "tensor":
            return (channels.reshape(1, -1),)
        if self.granularity == "channel":
            return (channels,)
        whole = channels.shape[1] // self.group_size * self.group_size
        full = channels[:, :whole].reshape(-1, self.group_size)
        return tuple(block for block in (full, channels[:, whole:]) if block.numel())

    def columns(self) -> tuple[int, ...]:
        """Values in a row of each of the matrices that `split` returns."""
        length = prod(self.shape) // self.out_channels
        if self.granularity == "tensor":
            return (prod(self.shape),)
        if self.granularity == "channel":
            return (length,)
        whole, rest = divmod(length, self.group_size)
        return (*((self.group_size,) if whole else ()), *((rest,) if rest else ()))

    def join(self, blocks: tuple[Tensor, ...]) -> Tensor:
        """The weight whose `split` is `blocks`."""
        out_channels = self.out_channels
        return self._weight(torch.cat([block.reshape(out_channels, -1) for block in blocks], 1))

    @property
    def out_channels(self) -> int:
        """Of the layer, whichever dimension they lie along."""
        return self.shape[1] * self.transposed_groups if self.transposed_groups else self.shape[0]

    @property
    def _by_group(self) -> tuple[int, ...]:
        return (self.transposed_groups, self.shape[0] // self.transposed_groups, *self.shape[1:])

    def _channels(self, weight: Tensor) -> Tensor:
        if self.transposed_groups:
            weight = weight.reshape(self._by_group).transpose(1, 2)
        return weight.reshape(self.out_channels, -1)

    def _weight(self, channels: Tensor) -> Tensor:
        if self.transposed_groups:
            groups, inner, outer, *kernel = self._by_group
            return channels.reshape(groups, outer, inner, *kernel).transpose(1, 2).reshape(self.shape)
        return channels.reshape(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class WeightQuantizer:
    """Quantizes a whole weight tensor: a quantizer for each block of rows of its layout."""

    layout: WeightLayout
    blocks: tuple[Quantizer, ...]

    @classmethod
    def calibrate(
        cls, weight: Tensor, fmt: Format, layout: WeightLayout, quantization: QuantizationConfig
    ) -> WeightQuantizer:
        """The quantizer of `weight` in format `fmt`.

        Raises:
            InputError: the weight is too small for the format.
        """
        reason = fmt.misfit(layout.out_channels, weight.numel() // layout.out_channels)
        if reason is not None:
            raise InputError(f"a weight {list(weight.shape)} is too small for {fmt}: {reason}; choose fewer bits")
        blocks = tuple(
            calibrate_weight(
                rows,
                fmt,
                scheme=quantization.weight_scheme or "symmetric",
                method=quantization.weight_calibration or "balanced",
                percentile=quantization.percentile,
                rounding=quantization.weight_rounding,
                seed=quantization.rounding_seed,
            )
            for rows in layout.split(weight.float() if weight.dtype in HALF_TYPES else weight)
        )
        return cls(layout, blocks)

    def __call__(self, weight: Tensor) -> Tensor:
        if weight.dtype in HALF_TYPES:
            return self(weight.float()).to(weight.dtype)
        parts = zip(self.blocks, self.layout.split(weight), strict=True)
        return self.layout.join(tuple(quantizer(rows) for quantizer, rows in parts))
