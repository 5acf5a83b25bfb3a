"""A group of workers through Ray Train, and what happens when one is killed."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from haq.execute.ray_group import RayGroup
from haq.quant import QuantizedModel
from haq.training import FineTuner
from haq.training.group import train_by_group
from haq.training.settings import QATConfig
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import DATASETS, load_model

pytest.importorskip("ray.train")
pytestmark = [pytest.mark.slow, pytest.mark.ray]


def _outputs(group: RayGroup, loss: Any) -> torch.Tensor:
    model, data = load_model("digits_cnn"), DATASETS["digits"]()
    quantized = QuantizedModel(model, calibration=data.train.head(64).batches(64))
    settings = QATConfig(steps=6, batch_size=32, samples=128, data_parallel=2, checkpoint_steps=2)
    tuner = FineTuner(model, quantized, data.train, settings=settings, loss=loss, launch=partial(train_by_group, group))
    assert tuner.train(Policy.uniform(quantized.layers, Precision.parse("w4a4"))) is None
    return tuner.model(tuner.model.prepared(data.search.head(64).inputs))


def _deadly(mark: str, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy; the first process to be in its fourth step ends itself as the kernel would."""
    _deadly.calls = getattr(_deadly, "calls", 0) + 1  # type: ignore[attr-defined]
    if _deadly.calls == 4:  # type: ignore[attr-defined]
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return F.cross_entropy(outputs, targets)


def _wrong(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets.float())


def test_a_killed_worker_restarts_the_group_which_ends_with_the_same_policy(tmp_path: Path) -> None:
    group = RayGroup(workers=2)
    expected = _outputs(group, F.cross_entropy)
    assert group.starts == 1
    found = _outputs(group, partial(_deadly, str(tmp_path / "killed")))
    assert (tmp_path / "killed").exists()
    assert group.starts == 2
    assert torch.equal(found, expected)


def test_a_loss_that_cannot_be_used_is_told_once() -> None:
    with pytest.raises(InputError, match="fine-tuning failed"):
        _outputs(RayGroup(workers=2), _wrong)


def test_a_group_that_does_not_fit_is_refused() -> None:
    import ray

    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with pytest.raises(InputError, match=r"evaluator\.qat\.data_parallel = 64 needs 64 CPU"):
        RayGroup(workers=64).run(print, None)
