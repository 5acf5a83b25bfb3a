"""Deep Gradient Compression: top-k of a velocity that waits (Lin et al., ICLR 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from haq.distributed.base import Compressor, Place
from haq.distributed.topk import checked_ratio, kept, largest_at, sparse_message, sparse_row
from haq.values.errors import InputError

_STAGES = 4
"""Warm-up sends 1/4, 1/16, 1/64, 1/256 of the values: sparsity 75, 93.75, 98.44, 99.6 % (section 3.3)."""


class DeepGradientCompression(Compressor):
    """Momentum before the choice, both sums cleared where a value is sent (Algorithm 4); holds back what error feedback
    would, so it needs none. The optimizer is plain SGD: the momentum is here.

    Args:
        ratio: share of each parameter's values, after warm-up.
        momentum: of the velocity.
        clip: before anything else, the parameter's gradient is cut to the norm `clip / sqrt(workers)` (section 3.3;
            there the norm of all parameters, which no bucket of DDP sees); `None`: not.
        warmup_steps: steps in which the share goes down to `ratio`, in four stages.
    """

    biased = False

    def __init__(
        self, ratio: float = 0.001, momentum: float = 0.9, clip: float | None = None, warmup_steps: int = 0
    ) -> None:
        self._ratio = checked_ratio("dgc", ratio)
        if not 0 <= momentum < 1:
            raise InputError(f"dgc: momentum must be at least 0 and below 1 (got {momentum!r})")
        if clip is not None and not clip > 0:
            raise InputError(f"dgc: clip must be above 0, or None (got {clip!r})")
        if isinstance(warmup_steps, bool) or not isinstance(warmup_steps, int) or warmup_steps < 0:
            raise InputError(f"dgc: warmup_steps must be a whole number, at least 0 (got {warmup_steps!r})")
        self._momentum, self._clip, self._warmup = momentum, clip, warmup_steps
        self._velocity: dict[str, Tensor] = {}
        self._waiting: dict[str, Tensor] = {}

    def _number(self, place: Place) -> int:
        ratio = self._ratio
        if place.step < self._warmup:
            ratio = max(ratio, 0.25 ** (1 + place.step * _STAGES // self._warmup))
        return kept(place.count, ratio)

    def encode(self, values: Tensor, place: Place, *, largest: float = 0.0) -> Tensor:
        if self._clip is not None:
            bound = self._clip / math.sqrt(place.world)
            values = values * min(1.0, bound / max(float(values.norm()), 1e-30))
        zero = torch.zeros_like(values)
        velocity = self._momentum * self._velocity.get(place.name, zero) + values
        waiting = self._waiting.get(place.name, zero) + velocity
        at = largest_at(waiting, self._number(place))
        message = sparse_message(waiting, at)
        velocity[at] = 0.0
        waiting[at] = 0.0
        self._velocity[place.name], self._waiting[place.name] = velocity, waiting
        return message

    def decode(self, message: Tensor, place: Place) -> Tensor:
        return sparse_row(message, place, self._number(place))

    def state_dict(self) -> dict[str, Tensor]:
        both = (("velocity", self._velocity), ("waiting", self._waiting))
        return {f"{kind}/{name}": value.clone() for kind, held in both for name, value in held.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for kind, held in (("velocity", self._velocity), ("waiting", self._waiting)):
            held.clear()
            held |= {key.partition("/")[2]: value.clone() for key, value in state.items() if key.startswith(f"{kind}/")}
