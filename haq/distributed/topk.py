"""Top-k: the largest values and where they stand (Aji and Heafield, EMNLP 2017; Stich et al., NeurIPS 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from haq.distributed.base import Compressor, Place
from haq.distributed.packing import bytes_float, float_bytes, pack, unpack
from haq.values.errors import InputError


def checked_ratio(name: str, ratio: float) -> float:
    """`ratio` where it is a share of the values.

    Raises:
        InputError: it is not in (0, 1].
    """
    if not 0 < ratio <= 1:
        raise InputError(f"{name}: ratio must be above 0 and at most 1 (got {ratio!r})")
    return float(ratio)


def kept(count: int, ratio: float) -> int:
    """How many of `count` values are sent: at least one."""
    return max(1, math.ceil(ratio * count - 1e-9))


def sparse_message(values: Tensor, at: Tensor) -> Tensor:
    """The values at sorted positions `at`: float32 each, and positions in as many bits as the row needs."""
    return torch.cat([float_bytes(values[at]), pack(at, index_width(values.numel()))])


def sparse_row(message: Tensor, place: Place, number: int) -> Tensor:
    """The row that a sparse message of `number` values stands for; zero elsewhere."""
    at = unpack(message[4 * number :], number, index_width(place.count)).to(torch.int64)
    row = torch.zeros(place.count, device=message.device)
    row[at] = bytes_float(message[: 4 * number])
    return row


def index_width(count: int) -> int:
    """Bits of a position among `count`."""
    return max(1, (count - 1).bit_length())


def largest_at(values: Tensor, number: int) -> Tensor:
    """Positions of the `number` largest magnitudes, sorted."""
    return values.abs().topk(number, sorted=False).indices.sort().values


class TopK(Compressor):
    """Sends the largest magnitudes of each parameter exactly, and nothing of the others: a contraction by 1 - ratio.

    Args:
        ratio: share of each parameter's values; at least one is sent.
    """

    def __init__(self, ratio: float = 0.01) -> None:
        self._ratio = checked_ratio("topk", ratio)

    def encode(self, values: Tensor, place: Place, *, largest: float = 0.0) -> Tensor:
        return sparse_message(values, largest_at(values, kept(place.count, self._ratio)))

    def decode(self, message: Tensor, place: Place) -> Tensor:
        return sparse_row(message, place, kept(place.count, self._ratio))
