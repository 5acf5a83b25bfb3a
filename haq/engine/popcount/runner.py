"""The integer engine with popcount kernels where a layer's formats allow them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from haq.engine.graph import IntegerModel, Node, TensorFormat
from haq.engine.kernels import centred_weight, requantize
from haq.engine.popcount.compiled import compiler
from haq.engine.popcount.sums import PackedLayer, Scheme
from haq.engine.run import IntegerRunner

_MOST_BITS = 3


class PopcountRunner(IntegerRunner):
    """An `IntegerRunner`, equal to it bit for bit, whose layers of few bits run in C.

    Convolutions of one group and linear layers qualify with binary or ternary operands, or with at most 3 bits on
    both sides. Without a compiler it warns once and runs as `IntegerRunner` does.

    Attributes:
        packed: names of the layers that run by popcount.
    """

    def __init__(self, model: IntegerModel, *, path: str | None = None) -> None:
        super().__init__(model)
        self._layers: dict[str, PackedLayer] = {}
        if compiler() is None:
            warnings.warn("no C compiler (gcc, clang, CC): popcount kernels are off, torch runs", stacklevel=2)
            return
        nodes = {node.name: node for node in model.nodes}
        for node in model.nodes:
            scheme = _scheme(node, nodes)
            if scheme is not None:
                self._layers[node.name] = PackedLayer(centred_weight(node).numpy().astype(np.int8), scheme, path=path)

    @property
    def packed(self) -> tuple[str, ...]:
        """Names of the layers that run by popcount."""
        return tuple(self._layers)

    def compute(self, node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat]) -> Tensor:
        """The output of one node."""
        layer = self._layers.get(node.name)
        if layer is None:
            return super().compute(node, operands, read)
        x = (operands[0] - read[0].zero_point).to(torch.int8).numpy()
        if node.op == "linear":
            sums = layer.linear(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
            return requantize(torch.from_numpy(sums), node, -1, self.model.rounding)
        attributes = {key: node.attributes[key] for key in ("stride", "padding", "dilation")}
        return requantize(torch.from_numpy(layer.conv(x, **attributes)), node, 1, self.model.rounding)


def _bits(low: int, high: int, signed: bool) -> int:
    """Least bits of two's complement, or of unsigned integers."""
    return max((-low - 1).bit_length(), high.bit_length()) + 1 if signed else max(high.bit_length(), 1)


def _scheme(node: Node, nodes: dict[str, Node]) -> Scheme | None:
    """How a layer's operands are packed; None where it is no layer or has too many bits."""
    if node.op not in ("conv", "linear") or node.attributes.get("groups", 1) != 1:
        return None
    weight, source = centred_weight(node), nodes[node.inputs[0]]
    if weight.numel() == 0 or weight.dim() > 4:
        return None
    low, high = (limit - source.format.zero_point for limit in (source.format.low, source.format.high))
    least, most = int(weight.min()), int(weight.max())
    if min(low, least) >= -1 and max(high, most) <= 1 and low < 0:
        return Scheme("binary" if source.op == "sign" and bool(weight.all()) else "ternary")
    weight_bits, bits = max(2, _bits(least, max(most, 0), signed=True)), _bits(min(low, 0), max(high, 0), low < 0)
    fits = weight_bits <= _MOST_BITS and bits <= _MOST_BITS
    return Scheme("serial", weight_bits, bits, signed=low < 0) if fits else None
