"""What a compressor is: how one parameter's gradient becomes a message, and a message a gradient."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """Whose gradient it is, and when.

    Attributes:
        name: of the parameter; state is kept under it, since DDP changes its buckets after the first step.
        shape: of the parameter; a compressor sees its values in one row.
        rank: of this worker.
        world: number of workers.
        step: synchronised backward passes before this one.
        seed: of everything drawn at random.
    """

    name: str
    shape: tuple[int, ...]
    rank: int = 0
    world: int = 1
    step: int = 0
    seed: int = 0

    @property
    def count(self) -> int:
        """Number of values."""
        return int(torch.Size(self.shape).numel())

    def random_seed(self, *, shared: bool) -> int:
        """A seed for this parameter and step: the same on every worker, or each worker's own.

        It depends on nothing but the place, so a resumed run draws what the undisturbed one would have drawn.
        """
        key = f"{self.seed}/{self.step}/{self.name}/{'' if shared else self.rank}"
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1

    def uniform(self, device: torch.device) -> Tensor:
        """Random numbers in [0, 1), one for each value, each worker's own."""
        generator = torch.Generator(device).manual_seed(self.random_seed(shared=False))
        return torch.rand(self.count, generator=generator, device=device)


class Compressor(ABC):
    """Turns gradients into messages and back, one parameter at a time.

    Call order, for each parameter with at least one value: `largest` where `needs_largest`; `encode`; then, with the
    messages of all workers, `mean`. Values are float32 and finite: the hook has checked them.

    Attributes:
        biased: whether the mean of what is sent differs from the gradient; error feedback is for these.
        summed: messages are float32 tensors whose sums mean something (all-reduce); else they are bytes that each
            worker decodes (all-gather).
        fixed_size: messages of one parameter have the same length on every worker.
        needs_largest: `encode` needs `largest` agreed upon by all workers.
    """

    biased: bool = True
    summed: bool = False
    fixed_size: bool = True
    needs_largest: bool = False

    @abstractmethod
    def encode(self, values: Tensor, place: Place, *, largest: float = 0.0) -> Tensor:
        """The message for `values` (a row of float32): uint8, or float32 where `summed`. Called once a step."""

    @abstractmethod
    def decode(self, message: Tensor, place: Place) -> Tensor:
        """The row of float32 values that `message` stands for."""

    def mean(self, messages: Sequence[Tensor], place: Place) -> Tensor:
        """The workers' mean gradient; by default the mean of what their messages stand for."""
        total = self.decode(messages[0], place)
        for message in messages[1:]:
            total = total + self.decode(message, place)
        return total / len(messages)

    def largest(self, values: Tensor, place: Place) -> float:
        """A figure of which all workers get the largest; only where `needs_largest`."""
        return 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """What this worker has to keep for the next step, by parameter name."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`; by default there is nothing to keep."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state; the checkpoint is of another compressor")
