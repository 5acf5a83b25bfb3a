"""Random probes and Hessian-vector products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs, -1 or 1, shaped like `like`; the same on every device."""
    signs = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8) * 2 - 1
    return signs.to(like.device, like.dtype)


def hessian_times(
    gradients: Sequence[Tensor], leaves: Sequence[Tensor], vectors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """H v, with H the Hessian by all `leaves` together and `gradients` those by each, made with `create_graph`."""
    curved = [(gradient, v) for gradient, v in zip(gradients, vectors, strict=True) if gradient.requires_grad]
    if not curved:
        return tuple(map(torch.zeros_like, leaves))
    return torch.autograd.grad(
        [gradient for gradient, _ in curved],
        leaves,
        grad_outputs=[v for _, v in curved],
        retain_graph=True,
        materialize_grads=True,
    )
