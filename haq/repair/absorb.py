"""Bias absorption: what a channel always has above zero moves into the next layer's bias, and its range shrinks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.quant.channel_clip import ChannelClip, clip_by_channel
from haq.repair.equalize import Pair, by_input, find_pairs
from haq.values.errors import InputError

_DEVIATIONS = 3.0


def absorb_bias(model: nn.Module, inputs: Any, pairs: Sequence[Pair] | None = None) -> nn.Module:
    """A copy of `model` whose activations behind a batch norm lie nearer to zero.

    Nagel et al., "Data-free quantization through weight equalization and bias correction" (ICCV 2019), section 4.1.3:
    channel i of a batch norm gives values of mean beta_i and standard deviation |gamma_i|, so that nearly all of them
    are above c_i = max(0, beta_i - 3 |gamma_i|); the norm's bias falls by c_i, and the next layer's bias (or the mean
    of the batch norm behind it) takes up what its weights make of c. The output changes where a value lies below c_i:
    0.13 % of them, were they normal. A layer that pads with zeros is left alone: c would be missing from its border.

    Args:
        model: the float model; left as it is.
        inputs: an example of what it is called with.
        pairs: of the model before it was equalized, whose clips are no modules of torch any more; default: found here.

    Raises:
        InputError: no channel has such a bias in front of a layer that can take it up.
    """
    result = copy.deepcopy(model).eval()
    known = find_pairs(model, inputs) if pairs is None else pairs
    with torch.no_grad():
        moved = [_absorb(result, pair) for pair in known if pair.norm is not None and pair.shifts]
    if not any(moved):
        raise InputError(
            "quantization.repairs: 'absorb_bias' needs a batch norm with a bias of more than three of its standard "
            "deviations, joined by ReLU or ReLU6 to a layer without zero padding that has a bias or a batch norm "
            "behind it; this model has none; leave it out"
        )
    return result


def _absorb(model: nn.Module, pair: Pair) -> int:
    """Channels of a pair whose bias was moved."""
    norm = model.get_submodule(str(pair.norm))
    assert isinstance(norm, _BatchNorm)
    second = model.get_submodule(pair.second)
    if not norm.affine or _pads_zeros(second):
        return 0
    shift = (norm.bias - _DEVIATIONS * norm.weight.abs()).clamp(min=0)
    upper = None if pair.clip is None else _clip(model, pair.clip, len(shift))
    if upper is not None:
        shift = torch.where(shift < upper, shift, 0.0)  # a channel that is always at its bound stays
    weight, _ = by_input(second, len(shift))
    groups = weight.shape[0]
    if not bool((shift > 0).any()) or not _shift_output(
        model, pair, (weight * shift.reshape(groups, 1, -1, 1)).sum((2, 3)).flatten()
    ):
        return 0
    norm.bias.sub_(shift)
    if upper is not None:
        clip_by_channel(model, [str(pair.clip)], [len(shift)])
        clip = model.get_submodule(str(pair.clip))
        assert isinstance(clip, ChannelClip)
        clip.upper = upper - shift
    return int((shift > 0).sum())


def _clip(model: nn.Module, name: str, channels: int) -> Tensor:
    """The upper bounds of a clip, a channel each."""
    clip = model.get_submodule(name)
    if isinstance(clip, ChannelClip):
        return clip.upper
    parameter = next(model.parameters())
    return torch.full((channels,), 6.0, dtype=parameter.dtype, device=parameter.device)


def _pads_zeros(layer: nn.Module) -> bool:
    padding = getattr(layer, "padding", 0)
    if getattr(layer, "padding_mode", "zeros") != "zeros" or padding == "valid":
        return False
    if isinstance(padding, str):  # same
        return any(size > 1 for size in getattr(layer, "kernel_size", ()))
    return any(padding) if isinstance(padding, tuple) else bool(padding)


def _shift_output(model: nn.Module, pair: Pair, change: Tensor) -> bool:
    """Give back to the second layer's output what its inputs lost; `False` where nothing there can hold it."""
    bias = model.get_submodule(pair.second)._parameters.get("bias")
    if bias is not None:
        bias.add_(change)
        return True
    behind = None if pair.behind is None else model.get_submodule(pair.behind)
    if not isinstance(behind, _BatchNorm) or behind.running_mean is None:
        return False
    behind.running_mean.sub_(change)
    return True
