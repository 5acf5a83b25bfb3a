"""Which policy each training step is under: one throughout, or another one each."""

from __future__ import annotations

from random import Random
from typing import Any, Protocol

import torch

from haq.training.trainable_model import Slots, TrainableModel, TrainedState
from haq.values.policy import Policy


class Drawable(Protocol):
    """What joint training needs of a search space."""

    def draw(self, random: Random) -> Policy:
        """A random policy."""


class Same:
    """One policy throughout."""

    def begin(self, optimizer: torch.optim.Optimizer) -> None: ...
    def next(self, weight_decay: float) -> None: ...
    def done(self) -> None: ...


class Drawn:
    """Another policy each step; what quantizers learn, and their optimizer state, is kept per layer and format."""

    def __init__(self, model: TrainableModel, space: Drawable, random: Random) -> None:
        self.slots: Slots = {}
        self._model, self._space, self._random = model, space, random
        self._moments: dict[tuple[str, str, str], list[dict[str, Any]]] = {}

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._known = {id(p) for group in optimizer.param_groups for p in group["params"]}

    def next(self, weight_decay: float) -> None:
        self._model.apply(self._space.draw(self._random), start=TrainedState({}, self.slots), keep_weights=True)
        for group, decay in zip(self._model.parameter_groups(), (weight_decay, 0.0), strict=True):
            if new := [parameter for parameter in group if id(parameter) not in self._known]:
                self._optimizer.add_param_group({"params": new, "weight_decay": decay})
                self._known |= {id(parameter) for parameter in new}
        for key, slot in self._model.slots():
            parameters = list(slot.active.parameters())
            for parameter, moments in zip(parameters, self._moments.get(key, [{}] * len(parameters)), strict=True):
                self._optimizer.state[parameter] = dict(moments)

    def done(self) -> None:
        for key, slot in self._model.slots():
            self.slots[key] = slot.state()
            self._moments[key] = [self._optimizer.state[parameter] for parameter in slot.active.parameters()]
