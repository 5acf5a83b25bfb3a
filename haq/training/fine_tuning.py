"""Fine-tuning under a policy: the training loop, the same for one policy and for many at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from random import Random
from typing import Any, cast

import torch
from torch import Tensor, nn

from haq.distributed import GradientError
from haq.edges.user_code import describe
from haq.quant import QuantizedModel, reestimate_batch_norm
from haq.quant.nested import Batches, Loss, call_model, map_tensors, tensors_in
from haq.quant.settings import OF_THE_FLOAT_MODEL
from haq.training import TrainableModel
from haq.training.data_parallel import Launch, Member, Share, peer_lost
from haq.training.distillation import DISTILLATIONS, classes_second, teacher_outputs
from haq.training.settings import QATConfig
from haq.training.switching import Drawable, Drawn, Same
from haq.training.trainable_model import TrainedState
from haq.values.errors import InputError
from haq.values.policy import Policy

TrainingStep = Callable[[Callable[[Any], Any], Any, Any], Tensor]
"""`(model, inputs, targets)` -> the loss to go down, a scalar tensor."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a policy could not be trained."""

    reason: str


class FineTuner:
    """Trains a float model's copy under policies; the float model is never changed.

    What comes out depends on policy, settings and seed only, not on what was trained before: every training starts from
    the float weights and the calibrated steps, or with `start = "shared"` from one joint training over policies drawn
    from the space with the seed. Batches come in the same order for every policy.

    Args:
        model: the float model.
        quantized: the same model wrapped.
        split: the train split.
        settings: quantizers, schedule, optimizer, ...
        loss: of outputs and targets of a batch.
        training_step: in place of `loss`.
        space: where joint training draws its policies from; needed for it only.
        seed: of the order of the samples, of the draws, and of what the model draws itself (dropout).
        class_axis: dimension of the outputs that holds the classes, for distillation by class probabilities where the
            targets do not say it.
        member: this process is one worker of a group, which `data_parallel` makes.
        launch: starts that group; without it and `member`, this process trains alone, whatever `data_parallel` says.

    Attributes:
        model: the trainable copy, as the last training left it.

    Raises:
        InputError: the settings contradict the model's quantization settings.
    """

    def __init__(
        self,
        model: nn.Module,
        quantized: QuantizedModel,
        split: Batches,
        *,
        settings: QATConfig,
        loss: Loss,
        training_step: TrainingStep | None = None,
        space: Drawable | None = None,
        seed: int = 0,
        class_axis: int | None = None,
        member: Member | None = None,
        launch: Launch | None = None,
    ) -> None:
        if quantized.quantization.bias_correction:
            raise InputError("quantization.bias_correction: fine-tuning learns the biases; leave it out")
        if idle := [name for name in quantized.quantization.repairs if name not in OF_THE_FLOAT_MODEL]:
            raise InputError(f"quantization.repairs: fine-tuning learns what {idle[0]} repairs; leave it out")
        self.model = TrainableModel(model, quantized, scheme=settings.quantizer, ternary=settings.ternary)
        self._settings, self._loss, self._own_step = settings, loss, training_step
        self._space, self._seed, self._class_axis = space, seed, class_axis
        part = split if settings.samples is None else split.head(settings.samples)
        (self._data,) = part.batches(2**62)
        self._split, self._member, self._launch = part, member, launch
        self._float, self._quantized = model, quantized
        self._count = len(next(tensors_in(self._data)))
        if min(settings.batch_size, self._count) % settings.data_parallel:
            raise InputError(
                f"evaluator.qat.data_parallel = {settings.data_parallel}: the batch of all {self._count} samples "
                "cannot be shared equally; change batch_size or samples"
            )
        self._teacher = None
        if settings.distillation != "none":
            self._teacher = teacher_outputs(quantized, self._data[0], settings.batch_size)
        self._forward: Callable[[Any], Any] = self.model
        if settings.compile:
            self._forward = partial(call_model, cast(nn.Module, torch.compile(self.model.module)))
        self._shared: TrainedState | Failure | None = None

    def train(self, policy: Policy, *, steps: int | None = None) -> Failure | None:
        """Fine-tune under `policy`; `model` is then trained and in evaluation mode.

        Args:
            policy: for this model.
            steps: in place of the settings' own.

        Returns:
            Why it failed: the loss is not finite, or memory ran out.

        Raises:
            InputError: the policy is for another model, or the loss or the model cannot be trained.
        """
        start = self.shared() if self._settings.start == "shared" else None
        if isinstance(start, Failure):
            return start
        self.model.apply(policy, start=start)
        count = steps or self._steps(self._settings.epochs or 1.0, self._settings.steps)
        if self._launch is not None and self._settings.data_parallel > 1:
            failure = self._train_by_group(self._launch, policy, count)
        else:
            failure = self._loop(count, Same())
        if self._member is not None:  # the rest is for whoever started the group
            return failure
        if failure is None and self.model.batch_norms and self.model.quantization.batch_norm == "reestimate":
            reestimate_batch_norm(self.model)
        return failure

    def apply_shared(self, policy: Policy) -> Failure | None:
        """Put `model` under `policy` with the jointly trained weights and re-estimated batch norm; no training."""
        start = self.shared()
        if isinstance(start, Failure):
            return start
        self.model.apply(policy, start=start)
        if self.model.batch_norms:
            reestimate_batch_norm(self.model)
        return None

    def shared(self) -> TrainedState | Failure:
        """One training over policies drawn at random, one a step, done once.

        Weights and batch norm are shared by all policies, step sizes by those that give a layer the same format
        (any-precision training: Yu et al., "Any-precision deep neural networks", AAAI 2021).
        """
        if self._shared is None:
            assert self._space is not None
            random = Random(self._seed)
            switching = Drawn(self.model, self._space, random)
            self.model.apply(self._space.draw(Random(self._seed)))
            failure = self._loop(self._steps(self._settings.shared_epochs, None), switching)
            self._shared = failure or TrainedState(self.model.state().module, switching.slots)
        return self._shared

    def _steps(self, epochs: float, steps: int | None) -> int:
        return steps or max(1, math.ceil(epochs * max(1, self._count // self._settings.batch_size)))

    def _train_by_group(self, launch: Launch, policy: Policy, steps: int) -> Failure | None:
        quantized = self._quantized
        share = Share(
            model=self._float,
            quantization=quantized.quantization,
            calibration=quantized.calibration,
            layers=tuple(quantized.layers),
            device=quantized.device.type,
            split=self._split,
            settings=self._settings,
            loss=self._loss,
            training_step=self._own_step,
            class_axis=self._class_axis,
            seed=self._seed,
            policy=policy,
            steps=steps,
        )
        result = launch(share)
        if isinstance(result, str):
            return Failure(result)
        self.model.apply(policy, start=result)
        self.model.module.eval()
        return None

    def _loop(self, steps: int, switching: Same | Drawn) -> Failure | None:
        settings, member, done = self._settings, self._member, 0
        with ExitStack() as stack:
            stack.enter_context(_seeded(self._seed + (member.rank if member else 0), self.model.device))
            stack.enter_context(_training(self.model.module))
            if member is not None:
                self._forward = stack.enter_context(member.training(self.model))
            optimizer = _optimizer(self.model, settings)
            switching.begin(optimizer)
            if member is not None:
                done = member.resume(self.model, optimizer)
            for step, rows in islice(zip(range(steps), self._batches(), strict=False), done, None):
                switching.next(settings.weight_decay)
                rate = settings.learning_rate
                if settings.schedule == "cosine":
                    rate *= 0.5 * (1.0 + math.cos(math.pi * step / steps))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                try:
                    loss = self._step(rows, optimizer)
                except InputError:
                    raise
                except GradientError as error:
                    return Failure(f"fine-tuning: {error}")
                except Exception as error:
                    if member is not None and peer_lost(error):
                        raise  # whoever started the group starts it anew
                    if _out_of_memory(error):
                        return Failure(f"out of memory in fine-tuning: {' '.join(str(error).split())}")
                    raise InputError(f"fine-tuning failed: {describe(error)}") from error
                if not math.isfinite(loss):
                    return Failure(f"the loss was {loss} in step {step + 1} of fine-tuning; lower the learning rate")
                self.model.bounded()
                switching.done()
                if member is not None:
                    member.save(step + 1, self.model, optimizer)
        return None

    def _step(self, rows: Tensor, optimizer: torch.optim.Optimizer) -> float:
        if self._member is not None:
            rows = self._member.share(rows)
        inputs, targets = (map_tensors(lambda tensor: tensor[rows], part) for part in self._data)
        inputs, targets = self.model.prepared(inputs), self.model.to_device(targets)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self._settings.autocast):
            loss = self._batch_loss(inputs, targets, rows)
        if loss.numel() != 1 or not loss.requires_grad:
            raise InputError("the training loss must be a scalar tensor with a gradient")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach() if self._member is None else self._member.mean(loss))

    def _batch_loss(self, inputs: Any, targets: Any, rows: Tensor) -> Tensor:
        if self._own_step is not None:
            return self._own_step(self._forward, inputs, targets)
        outputs = map_tensors(_float, self._forward(inputs))
        if self._teacher is None:
            return self._loss(outputs, targets)
        wanted = map_tensors(lambda tensor: tensor[rows.to(tensor.device)], self._teacher)
        weight = self._settings.distillation_weight
        pair = outputs, wanted
        if self._settings.distillation == "kl":
            pair = classes_second(*pair, targets, class_axis=self._class_axis)
        drawn = DISTILLATIONS[self._settings.distillation](*pair, self._settings.temperature)
        return drawn if weight == 1.0 else weight * drawn + (1.0 - weight) * self._loss(outputs, targets)

    def _batches(self) -> Iterator[Tensor]:
        """Rows of batch after batch, shuffled anew each epoch; a last batch that is smaller is left out."""
        generator = torch.Generator().manual_seed(self._seed)
        size = min(self._settings.batch_size, self._count)
        while True:
            order = torch.randperm(self._count, generator=generator)
            yield from torch.split(order[: self._count // size * size], size)


def _optimizer(model: TrainableModel, settings: QATConfig) -> torch.optim.Optimizer:
    decayed, others = model.parameter_groups()
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.learning_rate, momentum=settings.momentum)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, settings.learning_rate)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own random numbers from `seed`, for dropout and the like; afterwards as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _training(module: nn.Module) -> Iterator[None]:
    module.train()
    try:
        yield
    finally:
        module.eval()


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
