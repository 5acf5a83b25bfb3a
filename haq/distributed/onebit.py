"""1-bit SGD: one bit for each value and two values to reconstruct with (Seide et al., Interspeech 2014)."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.distributed.base import Compressor, Place
from haq.distributed.packing import bytes_float, float_bytes, pack, packed_bytes, unpack
from haq.values.errors import InputError


class OneBit(Compressor):
    """Sends which side of zero a value is on; it comes back as the mean of the values on that side.

    Of all two-valued codes with the threshold zero the side's mean has the least squared error; a contraction.

    Args:
        reconstruction: `tensor`: two means for each parameter; `column`: two for each output unit (row of torch's
            layout; Seide et al. keep weights as columns), which costs 64 bits for each.
    """

    def __init__(self, reconstruction: str = "tensor") -> None:
        if reconstruction not in ("tensor", "column"):
            raise InputError(f"onebit: reconstruction must be 'tensor' or 'column' (got {reconstruction!r})")
        self._by_column = reconstruction == "column"

    def _rows(self, place: Place) -> int:
        return place.shape[0] if self._by_column and len(place.shape) > 1 else 1

    def encode(self, values: Tensor, place: Place, *, largest: float = 0.0) -> Tensor:
        rows = values.view(self._rows(place), -1)
        upper = rows >= 0
        above, count = (rows * upper).sum(1), upper.sum(1)
        below = rows.sum(1) - above
        means = torch.stack([above / count.clamp(min=1), below / (rows.shape[1] - count).clamp(min=1)])
        return torch.cat([float_bytes(means.flatten()), pack(upper.flatten(), 1)])

    def decode(self, message: Tensor, place: Place) -> Tensor:
        rows = self._rows(place)
        means = bytes_float(message[: 8 * rows]).view(2, rows, 1)
        bits = unpack(message[8 * rows : 8 * rows + packed_bytes(place.count, 1)], place.count, 1)
        return torch.where(bits.view(rows, -1).bool(), means[0], means[1]).flatten()
