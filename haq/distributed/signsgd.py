"""signSGD with majority vote (Bernstein et al., ICML 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from haq.distributed.base import Compressor, Place
from haq.distributed.packing import bytes_float, float_bytes, pack, unpack


class SignSGD(Compressor):
    """Sends signs; each value moves where most workers want it to, and not at all where they are even.

    A message stands for `m * sign(v)`, with m the mean magnitude: the scaled sign of Karimireddy et al., "Error
    feedback fixes SignSGD", ICML 2019. Under error feedback those are averaged; a vote could not be accounted for in
    the residuals.

    Args:
        scaled: multiply the vote by the workers' mean magnitude of the parameter, so that learning rates of SGD stay
            right; without it the result is -1, 0 or 1.
    """

    def __init__(self, scaled: bool = True) -> None:
        self._scaled = scaled

    def encode(self, values: Tensor, place: Place, *, largest: float = 0.0) -> Tensor:
        return torch.cat([float_bytes(values.abs().mean().view(1)), pack(values >= 0, 1)])

    def decode(self, message: Tensor, place: Place) -> Tensor:
        return bytes_float(message[:4]) * self._signs(message, place)

    def mean(self, messages: Sequence[Tensor], place: Place) -> Tensor:
        votes = torch.stack([self._signs(message, place) for message in messages]).sum(0).sign()
        if not self._scaled:
            return votes
        return votes * torch.stack([bytes_float(message[:4]) for message in messages]).mean()

    @staticmethod
    def _signs(message: Tensor, place: Place) -> Tensor:
        return unpack(message[4:], place.count, 1).to(torch.float32) * 2 - 1
