"""The metrics and losses themselves: `(outputs, targets)` of a whole split -> a number or a scalar tensor.

Targets are labels, or with `data.targets = "float_model"` what the float model gives: its class probabilities, or for
metrics of values its outputs. Functions of classes take `class_axis`, the dimension of the outputs that holds them, for
where shapes do not say it (`haq.quant.classes`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from haq.quant.classes import class_axis as find_class_axis
from haq.quant.classes import index_axes, probability_axes
from haq.values.errors import InputError

NOISE_FLOOR_DB = 200.0
"""`sqnr` of outputs that equal the targets, whose ratio has no limit."""


def only_tensor(value: Any, what: str, name: str) -> Tensor:
    """`value`, which has to be a tensor.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, Tensor):
        raise InputError(
            f"{name} needs {what} that are one tensor, got {type(value).__name__}; name your own module:function"
        )
    return value


def accuracy(outputs: Any, targets: Any, *, class_axis: int | None = None) -> float:
    """Share of correct classes in per cent: logits `[n, classes, ...]` against class indices `[n, ...]`."""
    logits, classes = only_tensor(outputs, "outputs", "accuracy"), only_tensor(targets, "targets", "accuracy")
    if not index_axes(logits, classes):
        raise InputError(
            f"accuracy needs logits [n, classes, ...] and class indices [n, ...], got {tuple(logits.shape)} and "
            f"{tuple(classes.shape)}; against the float model take agreement, else name your own module:function"
        )
    axis = find_class_axis(logits, classes, given=class_axis, name="accuracy")
    return 100.0 * float((logits.argmax(axis) == classes).double().mean())


def agreement(outputs: Any, targets: Any, *, class_axis: int | None = None) -> float:
    """Share of samples (or positions), in per cent, whose largest output is where the float model's is."""
    logits, wanted = _against_float(outputs, targets, "agreement")
    axis = find_class_axis(logits, wanted, given=class_axis, name="agreement")
    return 100.0 * float((logits.argmax(axis) == wanted.argmax(axis)).double().mean())


def token_accuracy(outputs: Any, targets: Any, *, class_axis: int | None = None) -> float:
    """Share of positions with the right class, in per cent; positions whose target is no class (-100) do not count."""
    logits, wanted = _classes(outputs, targets, "token_accuracy", class_axis)
    counted = _counted(logits, wanted)
    return 100.0 * float((logits.argmax(-1) == wanted)[counted].double().mean())


def mean_iou(outputs: Any, targets: Any, *, class_axis: int | None = None) -> float:
    """Mean over classes of intersection over union, in per cent, over all positions of all samples together.

    Classes that neither outputs nor targets have are left out, as are positions whose target is no class.
    """
    logits, wanted = _classes(outputs, targets, "mean_iou", class_axis)
    counted, number = _counted(logits, wanted), logits.shape[-1]
    got, wanted = logits.argmax(-1)[counted], wanted[counted]
    hits = torch.bincount(got[got == wanted], minlength=number).double()
    union = torch.bincount(got, minlength=number) + torch.bincount(wanted, minlength=number) - hits
    return 100.0 * float((hits[union > 0] / union[union > 0]).mean())


def negative_perplexity(outputs: Any, targets: Any, *, class_axis: int | None = None) -> float:
    """Minus exp(mean cross entropy in nats over the positions that count), so that larger is better.

    Against the float model, minus exp(`kl_divergence`): how many times its own perplexity; -1 is the float model.
    """
    if _are_indices(outputs, targets):
        logits, wanted = _classes(outputs, targets, "negative_perplexity", class_axis)
        counted = _counted(logits, wanted)
        return -math.exp(float(F.cross_entropy(logits[counted], wanted[counted].long())))
    return -math.exp(float(kl_divergence(outputs, targets, class_axis=class_axis)))


def negative_kl(outputs: Any, targets: Any, *, class_axis: int | None = None) -> float:
    """Minus `kl_divergence`, so that larger is better."""
    return -float(kl_divergence(outputs, targets, class_axis=class_axis))


def negative_mse(outputs: Any, targets: Any) -> float:
    """Minus the mean squared error, so that larger is better."""
    return -float(mse(outputs, targets))


def cosine(outputs: Any, targets: Any) -> float:
    """Mean over samples of the cosine between outputs and targets, each flattened; 1 where they point the same way."""
    got, wanted = (tensor.double().flatten(1) for tensor in _of_one_shape(outputs, targets, "cosine"))
    lengths = got.norm(dim=1) * wanted.norm(dim=1)
    # Two vectors of zeros are the same; one against another direction has none.
    same = (got == wanted).all(dim=1).double()
    cosines = torch.where(lengths > 0, (got * wanted).sum(1) / lengths.clamp(min=torch.finfo(torch.double).tiny), same)
    return float(cosines.mean())


def sqnr(outputs: Any, targets: Any) -> float:
    """Signal to quantization noise in dB: 10 log10(sum of targets^2 / sum of (outputs - targets)^2), 200 at most."""
    got, wanted = (tensor.double() for tensor in _of_one_shape(outputs, targets, "sqnr"))
    signal, noise = float(wanted.square().sum()), float((got - wanted).square().sum())
    if noise == 0.0:
        return NOISE_FLOOR_DB
    return max(-NOISE_FLOOR_DB, min(NOISE_FLOOR_DB, 10.0 * math.log10(max(signal, 1e-300) / noise)))


def cross_entropy(outputs: Any, targets: Any, *, class_axis: int | None = None) -> Tensor:
    """Mean cross entropy of logits `[n, classes, ...]` and class indices `[n, ...]` or class probabilities."""
    logits = only_tensor(outputs, "outputs", "cross_entropy")
    wanted = only_tensor(targets, "targets", "cross_entropy")
    if logits.dim() > 2:
        axis = find_class_axis(logits, wanted, given=class_axis, name="cross_entropy")
        logits = logits.movedim(axis, 1)
        wanted = wanted.movedim(axis, 1) if wanted.dim() == logits.dim() else wanted
    return F.cross_entropy(logits, wanted)


def kl_divergence(outputs: Any, targets: Any, *, class_axis: int | None = None) -> Tensor:
    """Mean KL(targets || softmax of the outputs), in nats, of the float model's probabilities (`data.targets`)."""
    logits, wanted = _against_float(outputs, targets, "kl_divergence")
    axis = find_class_axis(logits, wanted, given=class_axis, name="kl_divergence")
    if axis not in probability_axes(logits, wanted):
        raise InputError(
            f"kl_divergence: targets {tuple(wanted.shape)} are no probabilities along dimension {axis}; set "
            "data.targets = 'float_model', or evaluator.class_axis"
        )
    positions = logits.numel() / logits.shape[axis]
    return F.kl_div(logits.log_softmax(axis), wanted.to(logits.dtype), reduction="sum") / positions


def mse(outputs: Any, targets: Any) -> Tensor:
    """Mean squared error of two tensors of one shape."""
    got, wanted = _of_one_shape(outputs, targets, "mse")
    return F.mse_loss(got, wanted.to(got.dtype))


def _of_one_shape(outputs: Any, targets: Any, name: str) -> tuple[Tensor, Tensor]:
    got, wanted = only_tensor(outputs, "outputs", name), only_tensor(targets, "targets", name)
    if got.shape != wanted.shape:
        raise InputError(
            f"{name} needs outputs and targets of one shape, got {tuple(got.shape)} and {tuple(wanted.shape)}"
        )
    return got, wanted


def _against_float(outputs: Any, targets: Any, name: str) -> tuple[Tensor, Tensor]:
    logits, wanted = only_tensor(outputs, "outputs", name), only_tensor(targets, "targets", name)
    if logits.shape != wanted.shape or logits.dim() < 2:
        raise InputError(
            f"{name} compares with the float model, and targets are {tuple(wanted.shape)} for outputs "
            f"{tuple(logits.shape)}; set data.targets = 'float_model'"
        )
    return logits, wanted


def _are_indices(outputs: Any, targets: Any) -> bool:
    return bool(index_axes(outputs, targets))


def _classes(outputs: Any, targets: Any, name: str, given: int | None) -> tuple[Tensor, Tensor]:
    """Logits `[..., classes]` and the wanted class of each position: a label, or the float model's likeliest."""
    logits, wanted = only_tensor(outputs, "outputs", name), only_tensor(targets, "targets", name)
    if not _are_indices(logits, wanted) and logits.shape != wanted.shape:
        raise InputError(
            f"{name} needs logits [n, classes, ...] and class indices [n, ...], got {tuple(logits.shape)} and "
            f"{tuple(wanted.shape)}; set data.targets = 'float_model', or name your own module:function"
        )
    axis = find_class_axis(logits, wanted, given=given, name=name)
    wanted = wanted if _are_indices(logits, wanted) else wanted.argmax(axis)
    return logits.movedim(axis, -1), wanted


def _counted(logits: Tensor, wanted: Tensor) -> Tensor:
    """Positions whose target is a class, `[...]`.

    Raises:
        InputError: there is none.
    """
    counted = (wanted >= 0) & (wanted < logits.shape[-1])
    if not bool(counted.any()):
        raise InputError(f"no target is one of the {logits.shape[-1]} classes; check the data")
    return counted
