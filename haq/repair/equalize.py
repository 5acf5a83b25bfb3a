"""Cross-layer equalization: channel ranges move between layers, and the float model stays what it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from haq.quant.channel_clip import ChannelClip, clip_by_channel
from haq.trace.capture import export_program
from haq.trace.layers import kind_of
from haq.values.errors import InputError

_ROUNDS = 40
_CLOSE = 1e-4
_EPSILONS = 100.0
_HOMOGENEOUS = ("relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "dropout", "dropout_", "alias", "clone")
_POOLS = ("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
          "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean", "pad", "constant_pad_nd")  # fmt: skip
_FLAT = ("flatten", "view", "reshape", "squeeze")
_CLIPS = ("hardtanh", "hardtanh_", "relu6", "relu6_")
_LAYERS = ("conv1d", "conv2d", "conv3d", "linear")


@dataclass(frozen=True)
class Pair:
    """Two layers joined by what scales with its input: a factor of a channel may move from one to the other.

    Attributes:
        first: its outputs, behind `norm` if there is one, are
        second: its inputs.
        norm: name of the batch norm between them.
        clip: name of the ReLU6 between them.
        behind: name of the batch norm that alone reads the second.
        shifts: whether a constant added to a channel goes through to the second, too.
    """

    first: str
    second: str
    norm: str | None = None
    clip: str | None = None
    behind: str | None = None
    shifts: bool = True


def equalize(model: nn.Module, inputs: Any) -> nn.Module:
    """A copy of `model` that computes the same, with the ranges of joined layers' channels alike.

    Nagel et al., "Data-free quantization through weight equalization and bias correction" (ICCV 2019), section 4.1: for
    a pair joined by a positively homogeneous activation, channel i of the first is divided by s_i = sqrt(r1_i / r2_i),
    that of the second multiplied, r being the largest absolute weight; over all pairs, until nothing changes. A batch
    norm in between takes part: the first layer gets the magnitude that it has with the norm folded in, and the norm's
    statistics and affine part follow, so that it may be folded, kept or re-estimated later. A ReLU6
    module becomes a clip with a bound for each channel. `absorb_bias` is the paper's next step.

    Args:
        model: the float model; left as it is.
        inputs: an example of what it is called with.

    Raises:
        InputError: no two layers are joined so.
    """
    pairs = find_pairs(model, inputs)
    if not pairs:
        raise InputError(
            "quantization.repairs: 'equalize' needs two layers joined by ReLU or ReLU6, or by a batch norm or a pool "
            "alone; this model has none (smooth activations do not scale with their input); leave it out"
        )
    result = copy.deepcopy(model).eval()
    clipped = [pair for pair in pairs if pair.clip is not None]
    channels = [result.get_submodule(pair.first)._parameters["weight"].shape[0] for pair in clipped]  # type: ignore[union-attr]
    clip_by_channel(result, [str(pair.clip) for pair in clipped], channels)
    with torch.no_grad():
        for pair in pairs:
            if pair.norm is not None:
                _scale_first(result, pair, _magnitude(result, pair))
        for _ in range(_ROUNDS):
            if max(_balance(result, pair) for pair in pairs) < _CLOSE:
                break
    return result


def find_pairs(model: nn.Module, inputs: Any) -> list[Pair]:
    """The pairs of a model, in the order in which they run; layers that are called once, each read by one other."""
    arguments = () if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    program = export_program(model, arguments, dict(inputs) if isinstance(inputs, Mapping) else {})
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    nodes = list(program.graph.nodes)
    calls = [name for node in nodes if (name := _layer(node, held)) is not None]
    found = []
    for node in nodes:
        first = _layer(node, held)
        if first is None or calls.count(first) > 1:
            continue
        pair = _next(node, first, held)
        if pair is not None and calls.count(pair.second) == 1 and pair.second != first and _fit(model, pair):
            found.append(pair)
    clips = [pair.clip for pair in found if pair.clip is not None]
    return [pair for pair in found if pair.clip is None or clips.count(pair.clip) == 1]


def _operator(node: Node) -> str:
    """`conv2d` of `aten.conv2d.default`; empty for what is no call."""
    return str(node.target).split(".")[1] if node.op == "call_function" and str(node.target).startswith("aten.") else ""


def _layer(node: Node, held: Mapping[str, str]) -> str | None:
    """The name of the layer that a node calls."""
    if _operator(node) not in _LAYERS or len(node.args) < 2 or not isinstance(node.args[1], Node):
        return None
    weight = held.get(node.args[1].name, "")
    return weight.removesuffix(".weight") if weight.endswith(".weight") else None


def _next(node: Node, first: str, held: Mapping[str, str]) -> Pair | None:
    """The pair of a layer and the one that alone reads what it wrote, through batch norm, activation and pools."""
    norm: str | None = None
    clip: str | None = None
    linear, shifts = _operator(node) == "linear", True
    while len(node.users) == 1:
        reader = next(iter(node.users))
        if not reader.args or reader.args[0] is not node:
            return None
        operator = _operator(reader)
        if operator in _LAYERS:
            second = _layer(reader, held)
            behind = _batch_norm(next(iter(reader.users)), held) if len(reader.users) == 1 else None
            return None if second is None else Pair(first, second, norm, clip, behind, shifts)
        if operator == "batch_norm" and norm is None:
            norm = _batch_norm(reader, held)
            if norm is None:
                return None
        elif operator in _CLIPS and clip is None and not linear:
            clip = _module(reader)
            if clip is None:
                return None
        elif not _keeps_channels(reader, operator, linear=linear):
            return None
        shifts = shifts and _keeps_shift(reader, operator)
        node = reader
    return None


def _batch_norm(node: Node, held: Mapping[str, str]) -> str | None:
    """The name of the batch norm that a node calls, if its scale is a parameter."""
    if _operator(node) != "batch_norm":
        return None
    return held.get(getattr(node.args[1], "name", ""), "").removesuffix(".weight") or None


def _keeps_shift(node: Node, operator: str) -> bool:
    """Whether a constant goes through: not where zeros are padded."""
    padding = node.args[3] if operator.startswith("avg_pool") and len(node.args) > 3 else ()
    return operator not in ("pad", "constant_pad_nd") and not any(padding if isinstance(padding, list | tuple) else ())


def _module(node: Node) -> str | None:
    """The ReLU6 module that a node is the only operator of."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", None)
    return str(path) if getattr(kind, "__name__", str(kind)).endswith("ReLU6") else None


def _keeps_channels(node: Node, operator: str, *, linear: bool) -> bool:
    """Whether a factor of a channel goes through an operator to the same channel, or to its block of features.

    Channels of a convolution are dimension 1, those of a linear layer the last one, where only what works element by
    element is known to keep them.
    """
    if operator in _HOMOGENEOUS:
        return True
    if linear or operator not in (*_POOLS, *_FLAT):
        return False
    if operator in ("pad", "constant_pad_nd"):
        return not any(value for value in node.args[2:] if isinstance(value, int | float))
    if operator == "mean":
        axes = node.args[1] if len(node.args) > 1 else None
        return isinstance(axes, list | tuple) and all(axis in (2, 3, 4, -1, -2) for axis in axes)
    return operator in _POOLS or node.meta["val"].dim() == 2


def _fit(model: nn.Module, pair: Pair) -> bool:
    """Whether both are plain layers, the channels of one being those (or groups of features) of the other."""
    parts = [model.get_submodule(name) for name in (pair.first, pair.second)]
    if pair.clip is not None and not isinstance(model.get_submodule(pair.clip), nn.ReLU6):
        return False
    kinds = [kind_of(part) for part in parts]
    if any(kind is None or kind.transposed for kind in kinds):
        return False
    weights = [part._parameters.get("weight") for part in parts]
    if any(weight is None for weight in weights):
        return False
    out, read = weights[0].shape[0], weights[1].shape[1] * int(getattr(parts[1], "groups", 1))  # type: ignore[union-attr]
    return read % out == 0 and (read == out or isinstance(parts[1], nn.Linear))


def _magnitude(model: nn.Module, pair: Pair) -> Tensor:
    """What each output channel of the first layer is divided by so that it has the size that folding gives it."""
    norm = _norm(model, pair)
    return 1.0 / _factor(norm).clamp(min=_least(norm))


def _norm(model: nn.Module, pair: Pair) -> _BatchNorm:
    assert pair.norm is not None
    norm = model.get_submodule(pair.norm)
    assert isinstance(norm, _BatchNorm)
    return norm


def _factor(norm: _BatchNorm) -> Tensor:
    """|gamma| / sigma."""
    assert norm.running_var is not None
    sigma = (norm.running_var + norm.eps).sqrt()
    return norm.weight.abs() / sigma if norm.affine else 1.0 / sigma


def _least(norm: _BatchNorm) -> Tensor:
    """The smallest factor on the first layer's weights that leaves epsilon small beside its variance: where statistics
    are estimated anew, epsilon does not scale with them."""
    assert norm.running_var is not None
    return (_EPSILONS * norm.eps / (norm.running_var + norm.eps)).sqrt().clamp(max=1.0)


def _scale_first(model: nn.Module, pair: Pair, divisor: Tensor) -> None:
    """Divide the first layer's channels; the batch norm behind it takes that back."""
    _divide(model.get_submodule(pair.first), divisor)
    norm = _norm(model, pair)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.div_(divisor)
    norm.running_var.copy_((norm.running_var + norm.eps) / divisor.square() - norm.eps)


def _divide(layer: nn.Module, divisor: Tensor) -> None:
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    assert weight is not None
    weight.div_(divisor.reshape(-1, *[1] * (weight.dim() - 1)))
    if bias is not None:
        bias.div_(divisor)


def _balance(model: nn.Module, pair: Pair) -> float:
    """Move one pair's ranges half way; how far from 1 the largest factor was."""
    first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
    weight = first._parameters["weight"]
    assert weight is not None
    ours = weight.abs().flatten(1).amax(1)
    if pair.norm is not None:
        ours = ours * _factor(_norm(model, pair))
    theirs = _input_range(second, len(ours))
    ready = (ours > 0) & (theirs > 0)
    factor = torch.where(ready, (ours / theirs.clamp(min=1e-30)).sqrt(), torch.ones_like(ours))
    if pair.norm is not None:
        norm = _norm(model, pair)
        factor = torch.minimum(factor, 1.0 / _least(norm))  # the variance stays above epsilon
        if not norm.affine:
            return 0.0
        norm.weight.div_(factor)
        norm.bias.div_(factor)
        _scale_first(model, pair, factor)
    else:
        _divide(first, factor)
    _multiply_inputs(second, factor)
    if pair.clip is not None:
        upper = model.get_submodule(pair.clip)
        assert isinstance(upper, ChannelClip)
        upper.upper.div_(factor)
    return float((factor.log()).abs().max())


def by_input(layer: nn.Module, channels: int) -> tuple[Tensor, int]:
    """The weight as `[groups, out, channels of a group, rest]`."""
    weight = layer._parameters["weight"]
    assert weight is not None
    groups = int(getattr(layer, "groups", 1))
    if isinstance(layer, nn.Linear):
        return weight.reshape(1, weight.shape[0], channels, -1), 1
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1), groups


def _input_range(layer: nn.Module, channels: int) -> Tensor:
    """The largest absolute weight that reads each channel."""
    weight, _ = by_input(layer, channels)
    return weight.abs().amax(dim=(1, 3)).flatten()


def _multiply_inputs(layer: nn.Module, factor: Tensor) -> None:
    weight, groups = by_input(layer, len(factor))
    weight.mul_(factor.reshape(groups, 1, -1, 1))
