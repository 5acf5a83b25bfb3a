"""Formats whose blocks of neighbouring values share a scale that follows from the values: what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from haq.quant.formats.base import Calibration, Coder, NumberFormat, Quantizer
from haq.quant.histogram import Histogram
from haq.values.formats import Format

TINY = torch.finfo(torch.float32).tiny


def cut(rows: Tensor, size: int) -> Tensor:
    """`[rows, n]` as `[rows, blocks, size]`; the last block is filled up with zeros."""
    blocks = -(-rows.shape[1] // size)
    return functional.pad(rows, (0, blocks * size - rows.shape[1])).view(rows.shape[0], blocks, size)


def uncut(blocks: Tensor, columns: int) -> Tensor:
    """`[rows, n]` again."""
    return blocks.reshape(blocks.shape[0], -1)[:, :columns].contiguous()


def along(x: Tensor, axis: int, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    """`quantize` of `x` as float32 rows along `axis`, shaped and typed like `x`; the gradient passes straight."""
    turned = x.detach().movedim(axis, -1)
    rows = turned.reshape(-1, turned.shape[-1]).to(torch.float32)
    quantized = quantize(rows).to(x.dtype).reshape(turned.shape).movedim(-1, axis)
    return straight(x, quantized)


def straight(x: Tensor, quantized: Tensor) -> Tensor:
    """`quantized`, with the gradient of `x` where one is wanted."""
    return x + (quantized - x).detach() if x.requires_grad and torch.is_grad_enabled() else quantized


class Dynamic:
    """A quantizer that finds its scales in what it quantizes: along `axis`, or the rows of a weight."""

    __slots__ = ()

    def __call__(self: Any, x: Tensor) -> Tensor:
        return along(x, self.axis, self.nearest)

    def nearest(self: Any, rows: Tensor) -> Tensor:
        """The values of float32 rows `[rows, n]`; the same as decoding what `encode` stores."""
        return self.decode(self.encode(rows), rows.shape[1])  # type: ignore[no-any-return]


class BlockFormat(NumberFormat):
    """Formats of blocks: nothing to calibrate, unless the subclass says so."""

    def make(self, fmt: Format, axis: int) -> Coder:
        """The quantizer of `fmt` along `axis`."""
        raise NotImplementedError

    def weight_quantizer(self, rows: Tensor, fmt: Format, how: Calibration) -> Quantizer:
        return self.make(fmt, -1)

    def activation_quantizer(self, seen: Histogram, fmt: Format, how: Calibration) -> Quantizer:
        return self.make(fmt, how.axis)

    def coder(self, fmt: Format) -> Coder:
        return self.make(fmt, -1)

    def from_doc(self, doc: Mapping[str, Any], fmt: Format) -> Quantizer:
        return self.make(fmt, int(doc["axis"]))
