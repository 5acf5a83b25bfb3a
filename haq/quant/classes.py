"""Where the classes are: which dimension of outputs holds one score for each class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from haq.values.errors import InputError

_SUMS_TO_ONE = 1e-3


def known_class_axis(outputs: Any, targets: Any = None, *, given: int | None = None) -> int | None:
    """The dimension of `outputs` that holds the classes, where something says so; `None` where nothing does.

    Outputs of two dimensions, `[n, classes]`, say it themselves. With more, it is the dimension that targets of class
    indices lack (`[n, classes, height, width]` against `[n, height, width]`, `[n, tokens, classes]` against
    `[n, tokens]`), or the one along which targets of class probabilities sum to one; where several fit, none is known.

    Args:
        outputs: of a model.
        targets: class indices or class probabilities for them, if there are any.
        given: what the user says; counted from the end if negative.

    Raises:
        InputError: the outputs have no dimension `given`.
    """
    if not isinstance(outputs, Tensor) or outputs.dim() < 2 or not outputs.is_floating_point():
        return None
    if given is not None:
        axis = given + outputs.dim() if given < 0 else given
        if not 0 < axis < outputs.dim():
            raise InputError(
                f"evaluator.class_axis = {given}: outputs {tuple(outputs.shape)} have dimensions 1 to "
                f"{outputs.dim() - 1} beside that of the samples"
            )
        return axis
    if outputs.dim() == 2:
        return 1
    axes = index_axes(outputs, targets) or probability_axes(outputs, targets)
    return axes[0] if len(axes) == 1 else None


def class_axis(outputs: Tensor, targets: Any = None, *, given: int | None = None, name: str) -> int:
    """As `known_class_axis`, for what cannot do without.

    Args:
        outputs: of a model, a floating-point tensor of two dimensions or more.
        targets: as there.
        given: as there.
        name: of the metric, loss or key that asks, for the message.

    Raises:
        InputError: nothing says where the classes are; names `evaluator.class_axis`.
    """
    axis = known_class_axis(outputs, targets, given=given)
    if axis is None:
        against = f" and targets {tuple(targets.shape)}" if isinstance(targets, Tensor) else ""
        raise InputError(
            f"{name}: outputs {tuple(outputs.shape)}{against} do not say which dimension holds the classes; set "
            "evaluator.class_axis (1 for [n, classes, height, width], -1 for [n, tokens, classes])"
        )
    return axis


def index_axes(outputs: Any, targets: Any) -> list[int]:
    """The dimensions without which `outputs` have the shape of `targets`, if these are class indices."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or outputs.dim() != targets.dim() + 1:
        return []
    if targets.is_floating_point() or targets.dtype == torch.bool:
        return []
    shape = tuple(outputs.shape)
    return [axis for axis in range(1, len(shape)) if shape[:axis] + shape[axis + 1 :] == tuple(targets.shape)]


def probability_axes(outputs: Any, targets: Any) -> list[int]:
    """The dimensions along which `targets` sum to one, if these are as many numbers as `outputs`, none below zero."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or outputs.shape != targets.shape:
        return []
    if not targets.is_floating_point() or not bool((targets >= 0).all()):
        return []
    return [
        axis
        for axis in range(1, targets.dim())
        if bool(((targets.sum(axis, dtype=torch.float32) - 1).abs() < _SUMS_TO_ONE).all())
    ]
