"""The same measurements on a GPU and on the CPU: `python -m pytest -m gpu`. Skipped without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from haq import Experiment
from haq.commands.export import export_policy
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.values.trial import Measurement

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
PRECISIONS = ("w8a8", "w4a4", "w2a2", "wternaryaternary", "wbinaryabinary", "wfp16abf16")
TRAINING = ("evaluator.qat.steps=10", "evaluator.qat.distillation='kl'")


def measured(device: str, *overrides: str) -> list[Measurement]:
    experiment = Experiment.load(QUICKSTART, overrides=(f"evaluator.device='{device}'", *overrides))
    assert experiment.quantized.device.type == device
    evaluator = experiment.evaluator("search")
    policies = [Policy.uniform(experiment.network.layer_names, Precision.parse(text)) for text in PRECISIONS]
    return [evaluator.float_measurement(), *map(evaluator, policies)]


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [
        ((), 0.02),
        (("evaluator.kind='bn'",), 0.02),
        (("quantization.batch_norm='fold'", "quantization.bias_correction=true"), 0.02),
        (("evaluator.amp=true",), 0.05),
        (("evaluator.kind='qat'", *TRAINING), 0.1),
        (("evaluator.kind='shared'", *TRAINING), 0.1),
    ],
    ids=["ptq", "bn", "fold", "amp", "qat", "shared"],
)
def test_a_gpu_measures_what_the_cpu_does(overrides: tuple[str, ...], tolerance: float) -> None:
    for ours, theirs in zip(measured("cuda", *overrides), measured("cpu", *overrides), strict=True):
        assert ours.ok == theirs.ok
        assert ours.details["loss"] == pytest.approx(theirs.details["loss"], rel=tolerance, abs=tolerance)
        assert ours.score == pytest.approx(theirs.score, abs=100 * tolerance)


@pytest.mark.parametrize("metric", ["fisher", "gradient", "hessian", "kl", "loss", "sqnr"])
def test_sensitivities_are_those_of_the_cpu(metric: str) -> None:
    tables = []
    for device in ("cuda", "cpu"):
        overrides = (f"evaluator.device='{device}'", f"sensitivity.metric='{metric}'", "sensitivity.samples=64")
        experiment = Experiment.load(QUICKSTART, overrides=overrides)
        tables.append([experiment.sensitivity().of(n, p) for n, c in experiment.space.precisions.items() for p in c])
    assert tables[0] == pytest.approx(tables[1], rel=0.05, abs=1e-5)


def test_auto_is_the_gpu() -> None:
    assert Experiment.load(QUICKSTART).compute_device.type == "cuda"


@pytest.mark.parametrize("kind", ["qat", "shared"])
def test_what_was_fine_tuned_there_is_exported(kind: str, tmp_path: Path) -> None:
    experiment = Experiment.load(
        QUICKSTART, overrides=("evaluator.device='cuda'", f"evaluator.kind='{kind}'", *TRAINING)
    )
    policy = Policy.uniform(experiment.network.layer_names, Precision.parse("w4a8"))
    (tmp_path / "policy.json").write_text(json.dumps(policy.to_doc()))
    document = export_policy(experiment, tmp_path, tmp_path / "m.safetensors", format="torch", check=True)
    assert document["check"]["agreement"] >= 99.0
    assert document["check"]["score"] == pytest.approx(document["measurement"]["score"], abs=0.5)
