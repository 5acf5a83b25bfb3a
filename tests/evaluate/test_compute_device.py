"""`evaluator.device` and `evaluator.amp` without a GPU; tests/evaluate/test_gpu.py compares where there is one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from haq import Experiment, InputError
from haq.commands.cli import main
from haq.evaluate import PTQEvaluator, Scoring
from haq.experiment.measurement_key import measurement_context
from haq.experiment.workers import worker_device
from haq.quant import QuantizedModel
from haq.training import SCHEMES, TrainableModel
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import MODELS, Split

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
PRECISIONS = ("w4a4", "wternaryaternary", "wbinaryabinary", "wfp16abf16", "wfp32a8")


def experiment(*overrides: str) -> Experiment:
    return Experiment.load(QUICKSTART, overrides=overrides)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert experiment().compute_device == torch.device("cpu")
    assert experiment().quantized.device == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_one_clear_line(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=rf"evaluator.device: device '{device}': .*; use 'cpu'$"):
        experiment(f"evaluator.device='{device}'").check()
    arguments = ["search", str(QUICKSTART), "--set", f"evaluator.device='{device}'", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["haq", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"haq: evaluator.device: device '{device}': torch")


@pytest.mark.parametrize("device", ["gpu", "tpu", "cuda:x", "mps"])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(InputError, match=r"evaluator\.device"):
        experiment(f"evaluator.device='{device}'")


def test_workers_use_a_gpu_where_they_reserve_one() -> None:
    ray = ("executor.kind='ray'", "executor.workers=2")
    assert worker_device(experiment(*ray).config) == "cpu"
    assert worker_device(experiment(*ray, "executor.gpus_per_worker=0.5").config) == "cuda"
    assert worker_device(experiment(*ray, "evaluator.device='cuda:1'").config) == "cuda:1"


@pytest.mark.usefixtures("no_gpu")
def test_the_name_of_the_device_is_no_reason_to_measure_again_but_amp_is() -> None:
    contexts = [measurement_context(experiment(*one)) for one in ((), ("evaluator.device='cpu'",))]
    assert contexts[0] == contexts[1]
    assert measurement_context(experiment("evaluator.amp=true")) != contexts[0]


class Output(NamedTuple):
    logits: Tensor


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Output:
        logits = self.layer(x)
        self.seen.append(logits.dtype)
        return Output(logits)


def test_amp_computes_in_bfloat16_and_scores_in_float32() -> None:
    torch.manual_seed(0)
    model, x = Named().eval(), torch.randn(40, 6)
    quantized = QuantizedModel(model, calibration=[(x, None)])
    split = Split(x, model(x).logits.detach())
    dtypes = []

    def error(outputs: Output, targets: Tensor) -> float:
        dtypes.append(outputs.logits.dtype)
        return -float((outputs.logits - targets).abs().max())

    scores = {}
    for amp in (False, True):
        quantized.module.seen.clear()
        scoring = Scoring(metric=error, loss=None, amp=amp)
        scores[amp] = PTQEvaluator(quantized, split, scoring=scoring).float_score()
        assert set(quantized.module.seen) == {torch.bfloat16 if amp else torch.float32}
    assert dtypes == [torch.float32, torch.float32]
    assert scores[False] == pytest.approx(0.0, abs=1e-5)
    assert -0.05 < scores[True] < -1e-4


@pytest.mark.parametrize("rung", ["ptq", "bn", "shared", "qat"])
def test_amp_of_an_experiment_holds_on_every_rung(rung: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = "def exact(outputs, targets):\n    return float(outputs.bfloat16().float().equal(outputs))\n"
    (tmp_path / "in_bfloat16.py").write_text(metric)
    monkeypatch.syspath_prepend(tmp_path)
    trained = ("evaluator.kind='qat'", "evaluator.qat.steps=1", "evaluator.qat.samples=128")
    scored = ("evaluator.metric='in_bfloat16:exact'", "evaluator.samples=64", "quantization.calibration_samples=64")
    for amp in (False, True):
        pieces = experiment(*trained, *scored, f"evaluator.amp={str(amp).lower()}")
        assert pieces.evaluator("search", rung=rung)(pieces.reference_policy).score == float(amp)


def to_meta(module: nn.Module) -> nn.Module:
    """`module` on the meta device in place: no values, so that waiting for one fails, and so does mixing devices."""
    for child in module.modules():
        for name, value in child.named_parameters(recurse=False):
            child._parameters[name] = nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
        for name, value in child.named_buffers(recurse=False):
            child._buffers[name] = value.to("meta")
    return module


@pytest.mark.parametrize("text", PRECISIONS)
@pytest.mark.parametrize("scheme", [None, *sorted(SCHEMES)])
def test_off_the_cpu_a_pass_mixes_no_devices_and_waits_for_no_value(text: str, scheme: str | None) -> None:
    images = torch.randn(4, 1, 28, 28)
    model = MODELS["resnet20"]().eval()
    quantized = QuantizedModel(model, calibration=[(images, None)])
    policy = Policy.uniform(quantized.layers, Precision.parse(text))
    if scheme is None:
        quantized.apply(policy)
        with torch.no_grad():
            assert to_meta(quantized.module)(images.to("meta")).is_meta
        return
    trainable = TrainableModel(model, quantized, scheme=scheme, ternary="ttq")
    trainable.apply(policy)
    for module in (trainable.module, *trainable.quantizers()):
        to_meta(module).train()
    trainable.module(images.to("meta")).sum().backward()
    assert all(p.grad is not None and p.grad.is_meta for p in trainable.module.parameters() if p.dim() > 1)
