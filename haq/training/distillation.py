"""Learning from the float model: its outputs, computed once, and how far others are from them."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from haq.quant import QuantizedModel
from haq.quant.classes import class_axis as find_class_axis
from haq.quant.nested import joined, map_tensors, tensors_in
from haq.values.errors import InputError


def teacher_outputs(quantized: QuantizedModel, inputs: Any, batch_size: int) -> Any:
    """The float model's outputs for all `inputs`, joined along the first dimension. Leaves the model float.

    Raises:
        InputError: the first dimension of the outputs does not count samples.
    """
    quantized.apply(None)
    count = len(next(tensors_in(inputs)))
    with torch.no_grad():
        parts = [
            quantized(quantized.to_device(map_tensors(itemgetter(slice(at, at + batch_size)), inputs)))
            for at in range(0, count, batch_size)
        ]
    outputs = joined(parts)
    if any(tensor.dim() == 0 or len(tensor) != count for tensor in tensors_in(outputs)):
        raise InputError("evaluator.qat.distillation: needs outputs whose first dimension counts samples")
    return outputs


def kl(outputs: Any, wanted: Any, temperature: float) -> Tensor:
    """KL divergence of softened class probabilities, times temperature^2 (Hinton et al. 2015).

    Raises:
        InputError: outputs are no logits `[n, classes, ...]`.
    """
    if not isinstance(outputs, Tensor) or outputs.dim() < 2:
        raise InputError("evaluator.qat.distillation = 'kl': needs logits [n, classes, ...]; take 'mse'")
    ours = (outputs / temperature).log_softmax(1).transpose(1, -1).flatten(0, -2)
    theirs = (wanted / temperature).log_softmax(1).transpose(1, -1).flatten(0, -2)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def classes_second(outputs: Any, wanted: Any, targets: Any, *, class_axis: int | None) -> tuple[Any, Any]:
    """`outputs` and `wanted` as `[n, classes, ...]`; as they are where they are no tensors of more dimensions than two.

    Raises:
        InputError: neither `class_axis` nor the targets say where the classes are.
    """
    if not isinstance(outputs, Tensor) or outputs.dim() < 3:
        return outputs, wanted
    axis = find_class_axis(outputs, targets, given=class_axis, name="evaluator.qat.distillation = 'kl'")
    return outputs.movedim(axis, 1), wanted.movedim(axis, 1)


def mse(outputs: Any, wanted: Any, temperature: float) -> Tensor:
    """Mean squared difference, averaged over the output tensors."""
    pairs = zip(tensors_in(outputs), tensors_in(wanted), strict=True)
    parts = [F.mse_loss(ours, theirs) for ours, theirs in pairs if ours.is_floating_point()]
    return torch.stack(parts).mean()


DISTILLATIONS: dict[str, Callable[[Any, Any, float], Tensor]] = {"kl": kl, "mse": mse}
