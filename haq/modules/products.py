"""Products as modules: of an activation and a weight that exists already, and of two activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def linear_of(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer that has these very parameters."""
    layer = nn.Linear(1, 1, bias=bias is not None, device="meta")
    layer.out_features, layer.in_features = weight.shape
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


class MatMul(nn.Module):
    """`input @ other`, batched over the leading dimensions."""

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        return torch.matmul(input, other)
