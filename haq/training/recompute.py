"""What a layer keeps for its gradient: the tensor that it was given, not the quantized one.

The layer before keeps the float tensor anyway, so that training under a policy keeps no more than float training. The
quantized tensor is made again when the layer's gradient is computed, which costs a percent or two of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

Quantize = Callable[[Tensor], Tensor]


class QuantizesInput:
    """Hooks of a layer, before all others of its own: it reads its first argument, or `input`, quantized.

    Args:
        layer: whose attribute `input_slot` quantizes.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._open: saved_tensors_hooks | None = None
        layer.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True)
        layer.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[0] if args else kwargs["input"]
        slot: Any = module.input_slot
        quantized = slot(given)
        if quantized is not given and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._open = saved_tensors_hooks(_packer(slot.quantize, given, quantized), _unpack)
            self._open.__enter__()
        return ((quantized, *args[1:]), kwargs) if args else (args, {**kwargs, "input": quantized})

    def _leave(self, *_: Any) -> None:
        if self._open is not None:
            self._open.__exit__()
            self._open = None


@dataclass(slots=True)
class _Again:
    """A tensor to be made again: `quantize(given)`, seen in another shape perhaps.

    `node` is the quantizer's own function, if it is one of ours: its gradient comes next and needs the same tensor.
    """

    quantize: Quantize
    given: Tensor
    version: int
    geometry: tuple[torch.Size, tuple[int, ...], int | torch.SymInt]
    node: Any

    def __call__(self) -> Tensor:
        if self.given._version != self.version:
            raise RuntimeError("what a quantized layer reads was modified by an inplace operation before its gradient")
        known = getattr(self.node, "again", None)
        if known is None:
            with torch.no_grad():
                known = self.quantize(self.given)
            if hasattr(self.node, "again"):
                self.node.again = known
        return known.as_strided(*self.geometry)


def _packer(quantize: Quantize, given: Tensor, quantized: Tensor) -> Callable[[Tensor], Any]:
    # Numbers, not the tensor itself, which the graph would then hold.
    start, elements, dtype, node = quantized.data_ptr(), quantized.numel(), quantized.dtype, quantized.grad_fn

    def pack(tensor: Tensor) -> Any:
        if (tensor.data_ptr(), tensor.numel(), tensor.dtype) != (start, elements, dtype):
            return tensor
        return _Again(quantize, given, given._version, (tensor.size(), tensor.stride(), tensor.storage_offset()), node)

    return pack


def _unpack(packed: Any) -> Any:
    return packed() if isinstance(packed, _Again) else packed
