"""What each worker of a group runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from haq.quant import QuantizedModel
from haq.training.data_parallel import Member, Share, Store
from haq.training.fine_tuning import FineTuner
from haq.training.trainable_model import TrainedState


def train_share(share: Share, store: Store) -> TrainedState | str:
    """Train this worker's share; the process group is joined. The state that all workers end with, or why it failed.

    Raises:
        InputError: the loss or the model cannot be trained.
    """
    quantized = QuantizedModel(
        share.model,
        quantization=share.quantization,
        calibration=[(inputs, None) for inputs in share.calibration],
        layers=share.layers,
        device=share.device,
    )
    tuner = FineTuner(
        share.model,
        quantized,
        share.split,
        settings=share.settings,
        loss=share.loss,
        training_step=share.training_step,
        seed=share.seed,
        class_axis=share.class_axis,
        member=Member(store, share.settings, seed=share.seed),
    )
    failure = tuner.train(share.policy, steps=share.steps)
    return tuner.model.state().on_cpu() if failure is None else failure.reason


class Group(Protocol):
    """Runs a function in processes that have joined one process group."""

    def run(self, function: Callable[[Any, Any], Any], payload: Any) -> Any:
        """What the first worker returned."""


def train_by_group(group: Group, share: Share) -> TrainedState | str:
    """Have `group` train a policy: the state that all workers end with, or why it failed."""
    try:
        result: TrainedState | str = group.run(train_share, share)
    except RuntimeError as error:
        return str(error)
    return result
