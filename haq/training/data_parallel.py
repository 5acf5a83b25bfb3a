"""One fine-tuning by several workers: each has its share of every batch, and all take the same step.

Gradients are averaged by torch's `DistributedDataParallel`, those of quantizer step sizes like those of weights: a step
size is one parameter of the model, equal on all workers from the same calibration on. Batch norm normalises with mean
and variance of the whole batch (Ioffe and Szegedy, ICML 2015; across workers as in Peng et al., "MegDet", CVPR 2018):
running statistics are equal everywhere, one worker with the same batch computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from haq.distributed import Compression, compress
from haq.quant.nested import Batches, Loss, call_model
from haq.quant.settings import QuantizationConfig
from haq.training.settings import QATConfig
from haq.training.trainable_model import TrainableModel, TrainedState
from haq.values.policy import Policy


class Store(Protocol):
    """Where a worker keeps its checkpoints; survives it."""

    def save(self, step: int, state: Any) -> None:
        """Keep what this worker needs to go on after `step` steps."""

    def load(self) -> Any | None:
        """This worker's state at the last step that all workers have kept; `None`: begin at the beginning."""


@dataclass(frozen=True)
class Share:
    """All that a worker needs to train its share.

    Attributes:
        model: the float model.
        calibration: inputs, as the quantized model keeps them.
        layers: its layers.
        device: `cpu` or `cuda`.
        policy: to train under.
        steps: of the training.
    """

    model: nn.Module
    quantization: QuantizationConfig
    calibration: tuple[Any, ...]
    layers: tuple[str, ...]
    device: str
    split: Batches
    settings: QATConfig
    loss: Loss
    training_step: Callable[[Callable[[Any], Any], Any, Any], Tensor] | None
    class_axis: int | None
    seed: int
    policy: Policy
    steps: int


Launch = Callable[[Share], TrainedState | str]
"""Trains by a group of workers: the state that all end with, or why it failed."""


class Member:
    """A worker of a process group that has been joined, in one training.

    Args:
        store: of this worker.
        settings: of the training.
        seed: of what compressors draw.
    """

    def __init__(self, store: Store, settings: QATConfig, *, seed: int) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._store, self._settings, self._seed = store, settings, seed
        self._compression: Compression | None = None

    @contextmanager
    def training(self, model: TrainableModel) -> Iterator[Callable[[Any], Any]]:
        """The forward pass to train with, from now on synchronised."""
        parallel = DistributedDataParallel(model.module, broadcast_buffers=False, find_unused_parameters=True)
        options: dict[str, Any] = dict(self._settings.compressor_options)
        self._compression = compress(parallel, self._settings.compressor, seed=self._seed, **options)
        with _whole_batch_statistics(model.module):
            yield partial(call_model, parallel)

    def share(self, rows: Tensor) -> Tensor:
        """This worker's rows of a batch."""
        return rows.chunk(self.world)[self.rank]

    def mean(self, loss: Tensor) -> Tensor:
        """The loss of the whole batch, equal everywhere: all workers stop, or none."""
        whole = loss.detach().clone()
        dist.all_reduce(whole)
        return whole / self.world

    def save(self, step: int, model: TrainableModel, optimizer: torch.optim.Optimizer) -> None:
        """Keep a checkpoint where one is due after `step` steps."""
        if step % self._settings.checkpoint_steps:
            return
        assert self._compression is not None
        state = {
            "step": step,
            "module": model.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "compression": self._compression.state_dict(),
        }
        self._store.save(step, state)

    def resume(self, model: TrainableModel, optimizer: torch.optim.Optimizer) -> int:
        """Go on from the last checkpoint that all workers have; says after how many steps."""
        state = self._store.load()
        if state is None:
            return 0
        assert self._compression is not None
        model.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self._compression.load_state_dict(state["compression"])
        return int(state["step"])


def peer_lost(error: Exception) -> bool:
    """Whether a collective failed because another worker is gone; gloo says so in words only."""
    words = ("closed by peer", "reset by peer", "Broken pipe", "gloo/transport", "Timed out waiting")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


@contextmanager
def _whole_batch_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms of `module` normalise with the statistics of all workers' samples.

    torch's own `SyncBatchNorm` runs on GPUs only.
    """
    group: Any = dist.new_group()  # of its own: its collectives do not mix with those of the gradients
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_normalised, norm, group)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward
        dist.destroy_process_group(group)


def _normalised(norm: _BatchNorm, group: Any, inputs: Tensor) -> Tensor:
    if not norm.training and norm.running_mean is not None:
        plain: Tensor = type(norm).forward(norm, inputs)
        return plain
    values = inputs.float()
    others = [axis for axis in range(values.dim()) if axis != 1]
    shape = [1, -1, *[1] * (values.dim() - 2)]
    count = values.numel() // values.shape[1] * dist.get_world_size(group)
    mean = _sum_of_all(values.sum(others), group) / count
    centred = values - mean.view(shape)
    variance = _sum_of_all(centred.square().sum(others), group) / count
    _follow(norm, mean.detach(), variance.detach(), count)
    result = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    typed: Tensor = result.to(inputs.dtype)
    return typed


class _SumOfAll(torch.autograd.Function):
    """The sum over workers; each worker's gradient is the sum of theirs, since all of them use it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = value.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _sum_of_all(value: Tensor, group: Any) -> Tensor:
    total: Tensor = _SumOfAll.apply(value, group)  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Running statistics as torch keeps them: the variance unbiased, a mean over all batches without `momentum`."""
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    weight = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), weight)
    norm.running_var.lerp_((variance * (count / max(count - 1, 1))).to(norm.running_var.dtype), weight)
