"""torch's own hooks (float16, bfloat16, PowerSGD, plain all-reduce) behind the same checks and counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
    bf16_compress_hook,
    fp16_compress_hook,
)
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from haq.distributed.hook import Bucket, Compression, check_finite
from haq.values.errors import InputError

Hook = Callable[[Any, Bucket], torch.futures.Future[Tensor]]
CASTS: dict[str, tuple[Hook, int]] = {
    "none": (allreduce_hook, 4),
    "fp16": (fp16_compress_hook, 2),
    "bf16": (bf16_compress_hook, 2),
}
"""Name -> torch's hook, and bytes of a value on the wire."""


class _TorchCompression(Compression):
    """A hook of torch's; one float of an all-reduce before it says whether all gradients are finite."""

    _state: Any
    _torch_hook: Hook
    _ordered = False
    """Whether the hook starts collectives when others end: those of two buckets then come in any order, and gloo mixes
    them up; each bucket has to end first."""

    def hook(self, bucket: Bucket) -> torch.futures.Future[Tensor]:
        bad = bucket.buffer().new_tensor([float(not self._sendable(bucket.buffer()))])
        self._reduce(bad)
        check_finite(int(bad), self._world, self.steps)
        size = self._bytes_before(bucket)
        result: torch.futures.Future[Tensor] = self._torch_hook(self._state, bucket)
        if self._ordered:
            result.wait()
        size = self._bytes_after(size)
        self.message_bytes += size
        self.wire_bytes += 2 * (self._world - 1) * size // self._world
        self._counted(bucket)
        return result

    def _sendable(self, buffer: Tensor) -> bool:
        return bool(torch.isfinite(buffer).all())

    def _bytes_before(self, bucket: Bucket) -> int:
        raise NotImplementedError

    def _bytes_after(self, before: int) -> int:
        return before


class CastCompression(_TorchCompression):
    """All-reduce in float32, float16 or bfloat16."""

    def __init__(self, model: DistributedDataParallel, name: str) -> None:
        super().__init__(model)
        self._state = self._group
        self._torch_hook, self._width = CASTS[name]
        self._limit = torch.finfo(torch.float16).max if name == "fp16" else float("inf")

    def _sendable(self, buffer: Tensor) -> bool:
        return super()._sendable(buffer) and (not buffer.numel() or float(buffer.abs().max()) <= self._limit)

    def _bytes_before(self, bucket: Bucket) -> int:
        return self._width * int(bucket.buffer().numel())


class PowerSGDCompression(_TorchCompression):
    """PowerSGD (Vogels et al., NeurIPS 2019), as torch has it. torch keeps its state by bucket, and buckets change when
    a run starts anew: a checkpoint has no state of it, a resumed run begins with uncompressed steps again.

    Args:
        model: whose gradients.
        rank: of the factors.
        start_step: steps that send everything before compression begins, at least 2.
        error_feedback: torch's own.
        seed: of the first factors.
    """

    _ordered = True

    def __init__(
        self,
        model: DistributedDataParallel,
        rank: int = 1,
        start_step: int = 2,
        *,
        error_feedback: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(model)
        self.check(rank, start_step)
        self._torch_hook = powerSGD_hook
        self._state = PowerSGDState(
            self._group,
            matrix_approximation_rank=rank,
            start_powerSGD_iter=start_step,
            use_error_feedback=error_feedback,
            random_seed=seed,
            compression_stats_logging_frequency=2**31,
        )

    @staticmethod
    def check(rank: int = 1, start_step: int = 2) -> None:
        """Whether the options can be used.

        Raises:
            InputError: one cannot.
        """
        for name, value, least in (("rank", rank, 1), ("start_step", start_step, 2)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"powersgd: {name} must be a whole number, at least {least} (got {value!r})")

    @staticmethod
    def check_parameters(model: DistributedDataParallel) -> None:
        """Whether torch's hook can factor every parameter.

        Raises:
            InputError: one has no values.
        """
        for name, parameter in model.module.named_parameters():
            if parameter.requires_grad and not parameter.numel():
                raise InputError(
                    f"powersgd: parameter {name!r} has no values, which torch's hook cannot send; freeze it"
                )

    def _bytes_before(self, bucket: Bucket) -> int:
        self._plain = self._state.iter < self._state.start_powerSGD_iter
        self._numel: int = bucket.buffer().numel()
        return int(self._state.total_numel_after_compression)

    def _bytes_after(self, before: int) -> int:
        if self._plain:
            return 4 * self._numel
        return 4 * (int(self._state.total_numel_after_compression) - before)
