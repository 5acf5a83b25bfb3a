"""What kind of prediction a model makes, and how the loss curves over it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from haq.quant.classes import index_axes, known_class_axis, probability_axes
from haq.quant.nested import tensors_in
from haq.sensitivity.probes import hessian_times, rademacher


def are_logits(outputs: Any, targets: Any) -> bool:
    """Whether outputs are logits, `[n, classes, ...]` or `[n, ..., classes]`, and targets their class indices."""
    return bool(index_axes(outputs, targets)) and known_class_axis(outputs, targets) is not None


def are_probabilities(outputs: Any, targets: Any) -> bool:
    """Whether targets are class probabilities for outputs that are logits."""
    return bool(probability_axes(outputs, targets)) and known_class_axis(outputs, targets) is not None


def curvature_probe(
    outputs: Any, targets: Any, loss: Callable[[Any, Any], Tensor], *, samples: int, generator: torch.Generator
) -> Tensor:
    """A scalar u' z of the outputs z with random u, E[u u'] = the curvature of the mean loss by the outputs.

    With J the change of z by some perturbation, E[(u' J)^2] is then its Gauss-Newton curvature. For logits and class
    indices the curvature is the softmax's Fisher information, each position counted 1 / positions, and u = sum over
    classes c of e_c sqrt(p_c) (1_c - p) with random signs e_c. A loss that is a sum over output elements (squared
    error, binary cross entropy, ...) tells its own curvature. Class probabilities as targets count like class
    indices. Any other loss is taken by its gradient at the targets, whose square stands for the curvature (the
    empirical Fisher).
    """
    if are_logits(outputs, targets):
        return _softmax_probe(_classes_second(outputs, targets), targets, generator)
    tensors = [tensor for tensor in tensors_in(outputs) if tensor.requires_grad]
    value = loss(outputs, targets)
    curvature = _elementwise_curvature(value, tensors, generator)
    if curvature is None and are_probabilities(outputs, targets):
        wanted = _classes_second(targets, targets).argmax(1)
        return _softmax_probe(_classes_second(outputs, targets), wanted, generator)
    if curvature is None:
        return value * math.sqrt(samples)
    products = [
        (z * h.clamp(min=0).sqrt() * rademacher(z, generator)).sum() for z, h in zip(tensors, curvature, strict=True)
    ]
    return torch.stack(products).sum()


def _classes_second(values: Tensor, targets: Tensor) -> Tensor:
    """`values` as `[n, classes, ...]`, wherever the targets say that the classes are."""
    axis = known_class_axis(values, targets)
    assert axis is not None  # `are_logits` or `are_probabilities`
    return values.movedim(axis, 1)


def _softmax_probe(logits: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    p = logits.detach().float().softmax(1)
    signed = p.sqrt() * rademacher(p, generator)
    u = signed - p * signed.sum(1, keepdim=True)
    # Positions whose target is no class, such as -100, do not count in the loss either.
    counted = ((targets >= 0) & (targets < logits.shape[1])).unsqueeze(1)
    return (logits * u * counted).sum() / math.sqrt(targets.numel())


def _elementwise_curvature(
    value: Tensor, tensors: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, ...] | None:
    """The diagonal of the Hessian of `value` by `tensors`, `None` unless the Hessian is that diagonal, and not zero."""
    signs = [rademacher(z, generator) for z in tensors]
    try:
        gradients = torch.autograd.grad(value, tensors, create_graph=True, materialize_grads=True)
        ones = hessian_times(gradients, tensors, [torch.ones_like(z) for z in tensors])
        products = hessian_times(gradients, tensors, signs)
    except RuntimeError:
        # A loss that cannot be differentiated twice, or outputs out of sight; one that cannot be differentiated at all
        # raises again when its gradient is taken.
        return None
    largest = max((float(h.abs().max()) for h in products), default=0.0)
    diagonal = all(
        torch.allclose(h, s * product, rtol=1e-3, atol=1e-3 * largest)
        for h, s, product in zip(ones, signs, products, strict=True)
    )
    return ones if diagonal and largest > 0 else None
