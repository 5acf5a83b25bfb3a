"""`haq export` as a user calls it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import haq
from haq.commands.cli import main
from haq.experiment.experiment import Experiment

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
LAYERS = ("stem", "depthwise", "pointwise", "down", "conv", "fc1", "fc2")


@pytest.fixture
def run_haq(monkeypatch, capsys):
    """Exit code, standard output and last line of standard error of a command."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["haq", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, (captured.err.splitlines() or [""])[-1]

    return run


@pytest.fixture
def policy(tmp_path) -> Path:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({name: {"weight_bits": 4, "activation_bits": 8} for name in LAYERS}))
    return path


@pytest.fixture
def run_folder(tmp_path, policy) -> Path:
    """What `haq export` needs of a run folder."""
    config = Experiment.load(QUICKSTART).config.model_dump(mode="json")
    document = {"schema_version": 1, "policy": json.loads(policy.read_text()), "provenance": {"config": config}}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "policy.json").write_text(json.dumps(document))
    return folder


def classes_of_the_quantized_model(policy: Path) -> torch.Tensor:
    experiment = Experiment.load(QUICKSTART)
    experiment.quantized.apply(experiment.load_policy(policy))
    with torch.no_grad():
        return experiment.quantized(experiment.data.test.inputs).argmax(1)


def test_an_onnx_file_runs_in_onnxruntime_and_agrees(run_haq, tmp_path, policy):
    ort = pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    code, printed, _ = run_haq(
        "export", policy, "--experiment", QUICKSTART, "--format", "onnx", "--out", out, "--check", "--json"
    )
    document = json.loads(printed)
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    images = Experiment.load(QUICKSTART).data.test.inputs.numpy()
    got = session.run(None, {session.get_inputs()[0].name: images})[0].argmax(1)
    assert code == 0
    assert np.mean(got == classes_of_the_quantized_model(policy).numpy()) >= 0.995
    assert document["bytes"] == out.stat().st_size
    assert document["check"]["agreement"] >= 99.5
    assert set(document["kernels"]) == set(LAYERS)
    assert document["kernels"]["fc1"] == {
        "precision": "w4a8",
        "operator": "MatMulIntegerToFloat",
        "runs_as": "integers",
    }


def test_a_run_folder_holds_its_experiment(run_haq, tmp_path, run_folder, policy):
    out = tmp_path / "model.safetensors"
    code, printed, _ = run_haq("export", run_folder, "--format", "torch", "--out", out, "--check", "--samples", 20)
    experiment = Experiment.load(QUICKSTART)
    with torch.no_grad():
        got = haq.load_quantized(experiment.model, out)(experiment.data.test.inputs).argmax(1)
    assert code == 0
    assert "check over 20 samples: same class 100.00 %" in printed
    assert torch.equal(got, classes_of_the_quantized_model(policy))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--format", "tflite"],
            "--format 'tflite': unknown; known: aimet, c, integer, modelopt, onnx, ort-overrides, qonnx, torch",
        ),
        (
            ["--format", "torch", "--pack"],
            "--pack: the torch format has no such option; leave it out, or use --format onnx",
        ),
        (["--format", "modelopt", "--check"], "--check: modelopt is a file for another tool, which has to run it"),
        (["--format", "torch", "--samples", "5"], "--samples: is for --check; add --check"),
        (["--format", "torch", "--set", "seed=1"], "--set: overrides keys of an experiment file; add --experiment"),
        (["--format", "torch", "--experiment", "no.toml"], "no.toml: no such file"),
        (["--format", "torch", "--sample"], "No such option"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_wrong_options_are_one_line_and_leave_nothing(run_haq, tmp_path, run_folder, options, message):
    code, printed, line = run_haq("export", run_folder, "--out", tmp_path / "out" / "model", *options)
    assert code == 2
    assert printed == ""
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_policy_must_exist_and_say_where_it_is_from(run_haq, tmp_path, policy):
    out = tmp_path / "out" / "model"
    missing = run_haq("export", tmp_path / "none", "--format", "torch", "--out", out)
    bare = run_haq("export", policy, "--format", "torch", "--out", out)
    assert (missing[0], bare[0]) == (2, 2)
    assert missing[2].endswith("none: no such file")
    assert bare[2].endswith("does not say which experiment it is from; add --experiment")
    assert not out.parent.exists()


FINE_TUNED = ["evaluator.kind=qat", "evaluator.qat.steps=8", "evaluator.qat.samples=256"]


def settings(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


@pytest.mark.parametrize("kind", ["qat", "shared"])
def test_a_fine_tuned_policy_is_written_as_it_was_scored(run_haq, tmp_path, policy, kind):
    out, chosen = tmp_path / "model.safetensors", settings(*FINE_TUNED, f"evaluator.kind={kind}")
    code, printed, _ = run_haq(
        "export", policy, "--experiment", QUICKSTART, *chosen, "--format", "torch", "--out", out, "--check", "--json"
    )
    experiment = Experiment.load(QUICKSTART, overrides=chosen[1::2])
    scored = experiment.evaluator("search")(experiment.load_policy(policy))
    with torch.no_grad():
        got = haq.load_quantized(experiment.model, out)(experiment.data.search.inputs)
    document = json.loads(printed)
    assert code == 0
    assert document["measurement"]["fidelity"] == kind
    assert document["check"]["score"] == document["measurement"]["score"] == scored.score
    assert document["check"]["exported_score"] == experiment.metric(got, experiment.data.search.targets)
    assert document["check"]["agreement"] >= 99.5
    assert list(tmp_path.glob(".haq-*")) == []


def test_the_score_of_the_search_is_printed_beside(run_haq, tmp_path, run_folder):
    file = run_folder / "policy.json"
    document = json.loads(file.read_text())
    document["provenance"]["config"]["evaluator"] |= {"kind": "qat", "qat": {"steps": 4}}
    document["measured"] = {"search_score": 12.5}
    file.write_text(json.dumps(document))
    code, printed, _ = run_haq("export", run_folder, "--format", "torch", "--out", tmp_path / "model.safetensors")
    assert code == 0
    assert " on the search split, 12.5 when it was searched" in " ".join(printed.split())


def test_the_last_rung_is_exported(run_haq, tmp_path, policy):
    files = []
    for ladder in ('["ptq", "bn"]', '["ptq", "qat:3"]', '["ptq", "qat:4"]'):
        files.append(tmp_path / f"{len(files)}.safetensors")
        code, printed, _ = run_haq(
            "export", policy, "--experiment", QUICKSTART, "--set", f"evaluator.ladder={ladder}", "--format", "torch",
            "--out", files[-1], "--json"
        )  # fmt: skip
        assert code == 0
        assert json.loads(printed)["measurement"]["fidelity"] == json.loads(ladder)[-1]
    experiment = Experiment.load(QUICKSTART)
    restored = [haq.load_quantized(experiment.model, file) for file in files]
    plain = dict(experiment.model.named_buffers())
    statistics = [dict(model.named_buffers()) for model in restored]
    name = next(name for name in plain if name.endswith("running_mean"))
    values = [plain[name], *(entry[name] for entry in statistics)]
    assert len({tuple(value.tolist()) for value in values}) == 4


def test_a_refusal_comes_before_the_fine_tuning(run_haq, tmp_path, policy, monkeypatch):
    monkeypatch.setattr("haq.training.FineTuner.train", lambda *_, **__: pytest.fail("trained"))
    policy.write_text(policy.read_text().replace('"weight_bits": 4', '"weight_format": "ternary"'))
    chosen = settings(*FINE_TUNED, "evaluator.qat.ternary=ttq")
    code, printed, line = run_haq(
        "export", policy, "--experiment", QUICKSTART, *chosen, "--format", "torch", "--out", tmp_path / "m"
    )
    assert (code, printed) == (2, "")
    assert "layer stem: trained ternary weights have a scale for each sign" in line
    assert not (tmp_path / "m").exists()


def test_a_place_that_cannot_be_written_is_refused_before_the_fine_tuning(run_haq, tmp_path, policy, monkeypatch):
    monkeypatch.setattr("haq.training.FineTuner.train", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    code, _, line = run_haq(
        "export", policy, "--experiment", QUICKSTART, *settings(*FINE_TUNED), "--format", "torch", "--out",
        tmp_path / "file" / "m"
    )  # fmt: skip
    assert code == 2
    assert line.endswith("cannot be written: Not a directory; choose another") or "File exists" in line


def test_a_failed_check_has_its_own_exit_code_and_says_why(run_haq, tmp_path, policy):
    arguments = [
        "export",
        policy,
        "--experiment",
        QUICKSTART,
        "--format",
        "onnx",
        "--out",
        tmp_path / "m.onnx",
        "--check",
    ]
    code, printed, _ = run_haq(*arguments, "--tolerance", "0", "--json")
    found = json.loads(printed)["check"]
    assert code == 4
    assert not found["passed"]
    assert found["failures"][0].startswith("outputs differ by ")
    assert found["cause"].startswith("the file itself: ")
    code, printed, _ = run_haq(*arguments, "--tolerance", "0.05")
    assert code == 0
    assert "integers" in printed
    assert "float32" in printed


def test_a_target_processor_that_is_none_is_refused(run_haq, tmp_path, policy):
    arguments = ["export", policy, "--experiment", QUICKSTART, "--format", "onnx", "--out", tmp_path / "m.onnx"]
    code, _, line = run_haq(*arguments, "--target-cpu", "avx")
    assert code == 2
    assert "--target-cpu 'avx': unknown; known: any, vnni" in line
