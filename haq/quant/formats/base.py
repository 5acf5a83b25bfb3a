"""Quantizers: what a number format does to a tensor once its range is known."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Quantizer(Protocol):
    """Maps a tensor to the nearest values that a format can hold: fake quantization. Shape and dtype stay."""

    def __call__(self, x: Tensor) -> Tensor: ...
