"""Folding batch norm into the layer before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from haq.quant.nested import tensors_in
from haq.trace.layers import channel_axis, kind_of


class FoldedBatchNorm:
    """A layer's weight and bias with the batch norm behind it folded in: w * gamma / sqrt(var + eps), and so on.

    Attributes:
        weight: shaped like the layer's.
        bias: `[out_channels]`.
        scale: gamma / sqrt(var + eps).
        shift: beta - mean * scale.
        skipped: whether the folded weights are in use.
    """

    def __init__(self, root: nn.Module, name: str, layer: nn.Module) -> None:
        path, _, self._child = name.rpartition(".")
        self._parent = root.get_submodule(path)
        batch_norm = root.get_submodule(name)
        assert isinstance(batch_norm, _BatchNorm)
        assert isinstance(layer.weight, Tensor)
        self._batch_norm = batch_norm
        self._identity = nn.Identity()
        self.skipped = False
        self.scale, self.shift = _scale_and_shift(batch_norm)
        bias = torch.zeros_like(self.shift) if layer.bias is None else layer.bias
        assert isinstance(bias, Tensor)
        with torch.no_grad():
            self.weight = layer.weight.detach() * _per_output(self.scale, layer)
            self.bias = nn.Parameter(bias.detach() * self.scale + self.shift, requires_grad=False)

    def skip(self, skipped: bool) -> None:
        """Pass over the batch norm (its work is in the weight) or put it back."""
        self.skipped = skipped
        self._parent._modules[self._child] = self._identity if skipped else self._batch_norm


def _scale_and_shift(batch_norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    mean, variance = batch_norm.running_mean, batch_norm.running_var
    assert mean is not None
    assert variance is not None
    scale = (variance + batch_norm.eps).rsqrt()
    if batch_norm.affine:
        scale = scale * batch_norm.weight.detach()
    shift = -mean * scale
    return scale, shift + batch_norm.bias.detach() if batch_norm.affine else shift


def _per_output(scale: Tensor, layer: nn.Module) -> Tensor:
    """`scale` per output channel, shaped to multiply the layer's weight."""
    assert isinstance(layer.weight, Tensor)
    kind = kind_of(layer)
    if kind is None or not kind.transposed:
        return scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    # Output channel g * (out / groups) + j is column j of the rows of group g.
    groups, inputs = int(getattr(layer, "groups", 1)), len(layer.weight)
    rows = scale.reshape(groups, 1, -1).expand(-1, inputs // groups, -1)
    return rows.reshape(inputs, -1, *[1] * kind.spatial)


class _Readers(TorchFunctionMode):
    """Counts the torch functions that read each watched tensor and return a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Tensor] = {}
        self.reads: Counter[int] = Counter()

    def watch(self, tensor: Tensor) -> None:
        # Held until the pass is over, so that no other tensor gets its identity.
        self.watched[id(tensor)] = tensor

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(True for _ in tensors_in(result)):
            self.reads.update({id(tensor) for tensor in tensors_in((args, kwargs or {}))} & self.watched.keys())
        return result


def foldable_batch_norms(
    root: nn.Module, layers: Mapping[str, nn.Module], forward: Callable[[], Any]
) -> dict[str, str]:
    """Layer name -> name of the batch norm that alone reads what the layer wrote, by watching one forward pass.

    Left out are batch norms without running statistics, modules that the pass calls more than once, and batch norms
    over another dimension than the layer's output channels (a linear layer with more than two dimensions).

    Args:
        root: holds the modules, in evaluation mode.
        layers: the candidates, by qualified name.
        forward: runs `root` once.
    """
    readers = _Readers()
    calls: Counter[str] = Counter()
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}

    def wrote(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            calls[name] += 1
            kind = kind_of(module)
            gathers = kind is not None and kind.gathers
            if isinstance(output, Tensor) and channel_axis(module, output) == 1 and not gathers:
                readers.watch(output)
                outputs[name] = output

        return hook

    def reads(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any) -> None:
            calls[name] += 1
            inputs[name] = args[0]

        return hook

    norms = {
        name: module
        for name, module in root.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    handles: list[RemovableHandle] = [
        module.register_forward_hook(wrote(name, module)) for name, module in layers.items()
    ]
    handles += [module.register_forward_pre_hook(reads(name)) for name, module in norms.items()]
    try:
        with readers, torch.no_grad():
            result = forward()
    finally:
        for handle in handles:
            handle.remove()
    readers.reads.update(id(tensor) for tensor in tensors_in(result))
    consumer = {id(tensor): name for name, tensor in inputs.items() if calls[name] == 1}
    return {
        name: consumer[id(output)]
        for name, output in outputs.items()
        if calls[name] == 1 and id(output) in consumer and readers.reads[id(output)] == 1
    }
