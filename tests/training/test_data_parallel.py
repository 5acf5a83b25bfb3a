"""Several workers that fine-tune one policy, in real process groups over the loopback address."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

from group import run_group

from haq.evaluate.settings import EvaluatorConfig
from haq.quant import QuantizedModel
from haq.training import FineTuner
from haq.training.data_parallel import Share
from haq.training.group import train_share
from haq.training.settings import QATConfig
from haq.training.trainable_model import TrainedState
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import DATASETS, load_model


class _Memory:
    """A store in this process."""

    def __init__(self) -> None:
        self.states: dict[int, Any] = {}

    def save(self, step: int, state: Any) -> None:
        self.states[step] = copy.deepcopy(state)

    def load(self) -> Any | None:
        return self.states[max(self.states)] if self.states else None


def _share(policy: str, **settings: Any) -> Share:
    model, data = load_model("digits_cnn"), DATASETS["digits"]()
    quantized = QuantizedModel(model, calibration=data.train.head(64).batches(64))
    qat = QATConfig(**{"steps": 3, "batch_size": 32, "samples": 128, **settings})
    return Share(
        model=model,
        quantization=quantized.quantization,
        calibration=quantized.calibration,
        layers=tuple(quantized.layers),
        device="cpu",
        split=data.train.head(128),
        settings=qat,
        loss=F.cross_entropy,
        training_step=None,
        class_axis=None,
        seed=3,
        policy=Policy.uniform(quantized.layers, Precision.parse(policy)),
        steps=qat.steps or 1,
    )


def _tensors(state: TrainedState) -> dict[str, torch.Tensor]:
    slots = {f"{key}{i}{n}": v for key, row in state.slots.items() for i, one in enumerate(row) for n, v in one.items()}
    return {**state.module, **slots}


def _alone(share: Share) -> dict[str, torch.Tensor]:
    quantized = QuantizedModel(
        share.model, calibration=[(inputs, None) for inputs in share.calibration], layers=share.layers
    )
    settings = share.settings.model_copy(update={"data_parallel": 1, "compressor": "none", "compressor_options": {}})
    tuner = FineTuner(share.model, quantized, share.split, settings=settings, loss=share.loss, seed=share.seed)
    assert tuner.train(share.policy, steps=share.steps) is None
    return _tensors(tuner.model.state())


def _trained(rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = {"w8a8": _tensors(train_share(_share("w8a8", data_parallel=world), _Memory()))}
    if world == 2:
        options = {"data_parallel": 2, "compressor": "topk", "compressor_options": {"ratio": 0.1}}
        found["compressed"] = _tensors(train_share(_share("w4a4", steps=4, **options), _Memory()))
        memory = _Memory()
        train_share(_share("w4a4", steps=4, checkpoint_steps=2, **options), memory)
        del memory.states[4]
        found["resumed"] = _tensors(train_share(_share("w4a4", steps=4, checkpoint_steps=2, **options), memory))
        found["loss"] = train_share(_share("w4a4", steps=4, learning_rate=1e30, data_parallel=2), _Memory())
    return found


def _same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}")


def test_two_workers_train_what_one_does_and_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    """One group for all: its start takes most of the time."""
    first, second = run_group(_trained, 2, tmp_path)
    _same(first["w8a8"], _alone(_share("w8a8")), 1e-4)
    _same(first["w8a8"], second["w8a8"], 0.0)
    _same(first["resumed"], first["compressed"], 0.0)
    assert "lower the learning rate" in first["loss"]
    assert "lower the learning rate" in second["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_trains_what_one_does(tmp_path: Path, workers: int) -> None:
    _same(run_group(_trained, workers, tmp_path)[0]["w8a8"], _alone(_share("w8a8")), 1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"compressor": "topk"}, "needs `data_parallel` of 2 or more"),
        ({"checkpoint_steps": 3}, "needs `data_parallel` of 2 or more"),
        ({"data_parallel": 3, "batch_size": 64}, "must be a multiple of `data_parallel`"),
        ({"data_parallel": 2, "compile": True}, "cannot be used together"),
        ({"data_parallel": 2, "start": "shared"}, "trains one policy"),
    ],
)
def test_what_a_group_cannot_do_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        QATConfig(**settings)


def test_a_group_does_not_train_jointly() -> None:
    with pytest.raises(ValidationError, match="trains one policy"):
        EvaluatorConfig(kind="shared", qat=QATConfig(data_parallel=2))


def test_a_batch_of_all_samples_that_cannot_be_shared_is_refused() -> None:
    share = _share("w8a8")
    quantized = QuantizedModel(share.model, calibration=[(inputs, None) for inputs in share.calibration])
    with pytest.raises(InputError, match="the batch of all 127 samples cannot be shared equally"):
        FineTuner(share.model, quantized, share.split.head(127), settings=QATConfig(data_parallel=2), loss=share.loss)
