"""Random-k: values at positions that all workers draw alike, so no position is sent (Stich et al., NeurIPS 2018)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from haq.distributed.base import Compressor, Place
from haq.distributed.topk import checked_ratio, kept


class RandomK(Compressor):
    """Sends the same random positions of every worker: their sums mean something, so this one is all-reduced.

    Args:
        ratio: share of each parameter's values; at least one is sent.
    """

    summed = True

    def __init__(self, ratio: float = 0.01) -> None:
        self._ratio = checked_ratio("randomk", ratio)

    def _at(self, place: Place, device: torch.device) -> Tensor:
        draw = np.random.default_rng(place.random_seed(shared=True))
        chosen = draw.choice(place.count, kept(place.count, self._ratio), replace=False, shuffle=False)
        return torch.from_numpy(chosen).to(device)

    def encode(self, values: Tensor, place: Place, *, largest: float = 0.0) -> Tensor:
        return values[self._at(place, values.device)]

    def decode(self, message: Tensor, place: Place) -> Tensor:
        row = torch.zeros(place.count, device=message.device)
        row[self._at(place, message.device)] = message
        return row


class UnbiasedRandomK(RandomK):
    """Random-k with the values that are sent multiplied by n / k, which makes the mean right and the variance large."""

    biased = False

    def encode(self, values: Tensor, place: Place, *, largest: float = 0.0) -> Tensor:
        return super().encode(values, place) * (place.count / kept(place.count, self._ratio))
