"""ReLU6 whose upper bound is a channel's own: what is left of it when channels are scaled."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

UPPER = "upper"


class ChannelClip(nn.Module):
    """`min(max(x, 0), upper)`, channels along dimension 1.

    Attributes:
        upper: `[channels]`, a buffer, so that a state dict has it.
    """

    upper: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer(UPPER, torch.full((channels,), 6.0))

    def forward(self, x: Tensor) -> Tensor:
        """Clipped, of the same shape."""
        return torch.minimum(x.relu(), self.upper.reshape(-1, *[1] * (x.dim() - 2)))


def clip_by_channel(root: nn.Module, names: Iterable[str], channels: Iterable[int]) -> None:
    """Put a `ChannelClip` in the place of each named ReLU6."""
    for name, count in zip(names, channels, strict=True):
        path, _, child = name.rpartition(".")
        root.get_submodule(path)._modules[child] = ChannelClip(count)
