"""The communication hook: a bucket of DDP's in, the workers' mean gradient out, through a compressor's messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from haq.distributed.base import Compressor, Place

Bucket = Any
"""`torch.distributed.GradBucket`, which has no types."""


class GradientError(ValueError):
    """A worker's gradient is not finite. Raised on every worker in the same step; residuals are then undefined."""


class Compression(ABC):
    """What `compress` registered: counts what goes over the wire, and has what a checkpoint needs.

    Attributes:
        steps: synchronised backward passes until now.
        gradient_bytes: of the gradients in float32 until now.
        message_bytes: what this worker handed to collectives in their place, headers and flags included.
        wire_bytes: what its link carried: N - 1 messages in an all-gather, 2 (N - 1) / N in a ring all-reduce.
    """

    def __init__(self, model: DistributedDataParallel) -> None:
        self.steps = self.gradient_bytes = self.message_bytes = self.wire_bytes = 0
        self._group: dist.ProcessGroup = model.process_group
        self._world, self._rank = dist.get_world_size(self._group), dist.get_rank(self._group)

    @property
    def ratio(self) -> float:
        """How many times fewer bytes than float32 this worker handed over; 1 before the first step."""
        return self.gradient_bytes / self.message_bytes if self.message_bytes else 1.0

    @abstractmethod
    def hook(self, bucket: Bucket) -> torch.futures.Future[Tensor]:
        """DDP's hook."""

    def state_dict(self) -> dict[str, Any]:
        """This worker's state, for its own checkpoint: with it, a resumed run equals the undisturbed one."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, of the worker with the same rank."""
        self.steps = int(state["steps"])

    def _counted(self, bucket: Bucket) -> None:
        self.gradient_bytes += 4 * bucket.buffer().numel()
        self.steps += bucket.is_last()

    def _reduce(self, tensor: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
        size = tensor.numel() * tensor.element_size()
        self.message_bytes += size
        self.wire_bytes += 2 * (self._world - 1) * size // self._world
        dist.all_reduce(tensor, operation, group=self._group)

    def _gather(self, tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        self.message_bytes += size
        self.wire_bytes += (self._world - 1) * size
        gathered = tensor.new_empty((self._world, tensor.numel()))
        dist.all_gather(list(gathered), tensor, group=self._group)
        return gathered


class CodedCompression(Compression):
    """Through a `Compressor`, parameter by parameter.

    Collectives run in the order of the buckets, each to its end before the next begins: a worker that finds something
    wrong says so in the message itself, so that all stop in the same step and nobody waits for one who stopped.

    Args:
        model: whose parameters.
        compressor: of this worker.
        seed: of what compressors draw.
    """

    def __init__(self, model: DistributedDataParallel, compressor: Compressor, *, seed: int) -> None:
        super().__init__(model)
        self._compressor, self._seed = compressor, seed
        self._names = {id(parameter): name for name, parameter in model.module.named_parameters()}

    def hook(self, bucket: Bucket) -> torch.futures.Future[Tensor]:
        pairs = [
            (self._place(parameter), gradient)
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True)
            if gradient.numel()
        ]
        if pairs:
            places = [place for place, _ in pairs]
            bad = not bool(torch.isfinite(bucket.buffer()).all())
            rows = [(torch.zeros_like(g) if bad else g).reshape(-1).to(torch.float32) for _, g in pairs]
            exchange = self._summed if self._compressor.summed else self._gathered
            for (_, gradient), row in zip(pairs, exchange(places, rows, bad), strict=True):
                gradient.copy_(row.view(gradient.shape))
        self._counted(bucket)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"compressor": self._compressor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._compressor.load_state_dict(state["compressor"])

    def _place(self, parameter: Tensor) -> Place:
        name = self._names[id(parameter)]
        return Place(name, tuple(parameter.shape), self._rank, self._world, self.steps, self._seed)

    def _summed(self, places: Sequence[Place], rows: Sequence[Tensor], bad: bool) -> list[Tensor]:
        messages = [self._encoded(row, place) for place, row in zip(places, rows, strict=True)]
        flag = messages[0].new_tensor([float(bad)])
        everything = torch.cat([*messages, flag])
        self._reduce(everything)
        self._check(int(everything[-1]))
        parts = torch.split(everything[:-1], [message.numel() for message in messages])
        return [self._compressor.decode(part / self._world, place) for place, part in zip(places, parts, strict=True)]

    def _gathered(self, places: Sequence[Place], rows: Sequence[Tensor], bad: bool) -> list[Tensor]:
        largest = self._largest(places, rows, bad) if self._compressor.needs_largest else [0.0] * len(places)
        messages = [self._encoded(row, place, most) for place, row, most in zip(places, rows, largest, strict=True)]
        sizes = [[message.numel() for message in messages]] * self._world
        if not self._compressor.fixed_size:
            sizes = self._gather(torch.tensor(sizes[0], dtype=torch.int32, device=rows[0].device)).tolist()
        everything = torch.cat([messages[0].new_tensor([bad]), *messages])
        room = 1 + max(map(sum, sizes))
        gathered = self._gather(torch.nn.functional.pad(everything, (0, room - everything.numel())))
        bad_ranks = gathered[:, 0].nonzero().flatten().tolist()
        self._check(len(bad_ranks), bad_ranks)
        parts = [torch.split(line[1 : 1 + sum(size)], size) for line, size in zip(gathered, sizes, strict=True)]
        return [self._compressor.mean([part[i] for part in parts], place) for i, place in enumerate(places)]

    def _encoded(self, row: Tensor, place: Place, largest: float = 0.0) -> Tensor:
        return self._compressor.encode(row, place, largest=largest)

    def _largest(self, places: Sequence[Place], rows: Sequence[Tensor], bad: bool) -> list[float]:
        own = [self._compressor.largest(row, place) for place, row in zip(places, rows, strict=True)]
        shared = torch.tensor(own, dtype=torch.float32, device=rows[0].device)
        self._reduce(shared, dist.ReduceOp.MAX)
        return [float(value) for value in shared.tolist()]

    def _check(self, count: int, ranks: Sequence[int] = ()) -> None:
        check_finite(count, self._world, self.steps, ranks)


def check_finite(count: int, world: int, step: int, ranks: Sequence[int] = ()) -> None:
    """Say on every worker that `count` workers have gradients that cannot be sent.

    Raises:
        GradientError: there are some.
    """
    if count:
        which = f" (rank {', '.join(map(str, ranks))})" if ranks else ""
        raise GradientError(
            f"the gradient of {count} of {world} workers{which} is NaN or infinite in step {step + 1}; lower the "
            "learning rate, or clip"
        )
