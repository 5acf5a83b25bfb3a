"""Other runtimes than ONNX Runtime: torch, and the user's own script; energy where there is a counter."""

import json
import sys
from pathlib import Path

import pytest
import torch

from haq import Experiment, InputError, Policy, Precision, load_profile
from haq.edges.progress import Silent
from haq.hardware import build_cost_model
from haq.hardware.costs import cost_report
from haq.profiling import machine as command
from haq.profiling.energy import energy_mj, read_packages
from haq.profiling.machine import Settings, profile_machine
from haq.profiling.runtimes.base import FLOAT
from haq.profiling.runtimes.choice import RuntimeChoice, build_runtime
from haq.profiling.validate import validate_profile

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
TIMER = """
import json, sys
policy = json.load(sys.stdin)["policy"]
print("a note of the script's")
low = [name for name, entry in policy.items() if entry["weight_bits"] == 4]
print(2.0 + sum(0.5 if name in low else 1.0 + 0.1 * index for index, name in enumerate(policy)))
"""


@pytest.fixture(scope="module")
def experiment():
    return Experiment.load(QUICKSTART)


@pytest.fixture
def script(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "timer.py").write_text(text)
        return f"{sys.executable} {tmp_path / 'timer.py'}"

    return write


def make(experiment, out, settings):
    return profile_machine(experiment, out, settings=settings, resume=False, command="haq profile", show=Silent())


def test_a_script_of_the_user_is_profiled_and_validated(tmp_path, experiment, script):
    choice = RuntimeChoice("command", command=script(TIMER), low="w4a8")
    out = tmp_path / "board.toml"
    document = make(experiment, out, Settings(choice, policies=20, rounds=2))
    names = experiment.network.layer_names
    assert document["float_ms"] == pytest.approx(2.0 + sum(1.0 + 0.1 * i for i in range(len(names))))
    profile = load_profile(out)
    assert {str(precision) for precision in profile.all_precisions} == {"wfp32afp32", "w4a8"}
    assert profile.measured.command == choice.command
    assert choice.command in profile.device.runtime
    policy = Policy({name: Precision.parse("w4a8") if i % 3 == 0 else FLOAT for i, name in enumerate(names)})
    true = 2.0 + sum(0.5 if i % 3 == 0 else 1.0 + 0.1 * i for i in range(len(names)))
    predicted = cost_report(experiment.network, build_cost_model(profile), policy).totals["latency_ms"]
    assert predicted == pytest.approx(true, rel=0.1)
    options = {"policies": 6, "rounds": 2, "seed": 1, "out": tmp_path / "v", "show": Silent()}
    with pytest.raises(InputError, match="which is run only if you name it: --command"):
        validate_profile(experiment, out, **options)
    found = validate_profile(experiment, out, **options, command=choice.command)
    assert set(found["models"]) == {"this profile", "bit operations, through both ends"}
    assert found["models"]["this profile"]["mean"] < 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; sys.exit('no board')", "ended with code 1: no board"),
        ("print('fast')", "the last line of its output is 'fast'; write milliseconds there"),
        ("print(-3)", "the last line of its output is '-3'"),
        ("", r"the last line of its output is '\(nothing\)'"),
        ("import time; time.sleep(60)", "no answer within 0.5 seconds; raise --timeout"),
    ],
    ids=["fails", "no number", "negative", "silent", "hangs"],
)
def test_a_script_that_fails_is_one_line(experiment, script, text, message):
    runtime = build_runtime(RuntimeChoice("command", command=script(text), timeout=0.5 if "sleep" in text else 30),
                            experiment.model, None, None)  # fmt: skip
    policy = Policy.uniform(experiment.network.layer_names, FLOAT)
    with pytest.raises(InputError, match=message):
        runtime.prepare(policy).run()


def test_a_command_that_is_not_there_is_one_line(experiment):
    runtime = build_runtime(RuntimeChoice("command", command="/no/such/program"), experiment.model, None, None)
    with pytest.raises(InputError, match="cannot be started: No such file"):
        runtime.prepare(Policy({})).run()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (RuntimeChoice("command"), "--command: is the script of --runtime command"),
        (RuntimeChoice("torch", command="x"), "--command: is the script of --runtime command"),
        (RuntimeChoice("onnxruntime", device="cuda"), "--device cuda: is for --runtime torch"),
        (RuntimeChoice("torch", low="w4a8"), "--low w4a8: is for --runtime command"),
        (RuntimeChoice("torch", device="tpu"), "--device 'tpu': unknown; known: cpu, cuda"),
        (RuntimeChoice("command", command="x", low="int4"), "--low: 'int4' is no precision"),
        (RuntimeChoice("command", command="'x"), "No closing quotation"),
    ],
    ids=["no command", "needless command", "device", "low", "unknown device", "precision", "quotes"],
)
def test_options_that_contradict_each_other_are_one_line(experiment, choice, message):
    with pytest.raises(InputError, match=message):
        build_runtime(choice, experiment.model, None, experiment.given_data.train.head(2).inputs)


def test_torch_runs_each_layer_in_its_own_type(experiment):
    inputs = experiment.given_data.train.head(1).inputs
    runtime = build_runtime(RuntimeChoice("torch"), experiment.model, None, inputs)
    assert str(runtime.low) == "wbf16abf16"
    names = experiment.network.layer_names
    policy = Policy({name: runtime.low if index % 2 else FLOAT for index, name in enumerate(names)})
    module, _ = runtime._build(policy)
    seen = {}
    for name in names:
        layer = module.get_submodule(name)
        layer.register_forward_hook(lambda layer, args, out, name=name: seen.update({name: (args[0].dtype, out.dtype)}))
    with torch.no_grad():
        outputs = module(inputs).float()
    wanted = {name: torch.bfloat16 if index % 2 else torch.float32 for index, name in enumerate(names)}
    assert seen == {name: (dtype, dtype) for name, dtype in wanted.items()}
    with torch.no_grad():
        assert float((outputs - experiment.model(inputs)).abs().max()) < 0.1 * float(outputs.abs().max())


def test_torch_on_this_machine(tmp_path, experiment):
    out = tmp_path / "mine.toml"
    document = make(experiment, out, Settings(RuntimeChoice("torch"), policies=4, rounds=2))
    assert all(row["float_ms"] > 0 for row in document["layers"].values())
    assert sum(row["float_ms"] for row in document["layers"].values()) == pytest.approx(document["float_ms"], rel=0.05)
    profile = load_profile(out)
    assert profile.measured.package == "torch"
    found = validate_profile(experiment, out, policies=2, rounds=2, seed=1, out=tmp_path / "v", show=Silent())
    assert "summed stand-alone times" in found["models"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_torch_on_a_gpu(tmp_path, experiment):
    choice = RuntimeChoice("torch", device="cuda")
    make(experiment, tmp_path / "gpu.toml", Settings(choice, policies=4, rounds=2))
    assert load_profile(tmp_path / "gpu.toml").measured.accelerator == torch.cuda.get_device_name()


@pytest.fixture
def powercap(tmp_path):
    """Two packages of 5 mJ per read-out, one that wraps, and the memory of one, which belongs to its package."""
    root = tmp_path / "powercap"
    for name, kind, counter in (("0", "package-0", 1000), ("1", "package-1", 99_000), ("0:0", "dram", 7)):
        folder = root / f"intel-rapl:{name}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(kind + "\n")
        (folder / "energy_uj").write_text(f"{counter}\n")
        (folder / "max_energy_range_uj").write_text("99999\n")
    return root


def count(root: Path, name: str, microjoules: int) -> None:
    path = root / f"intel-rapl:{name}" / "energy_uj"
    path.write_text(str((int(path.read_text()) + microjoules) % 100_000))


def test_energy_is_what_all_packages_count(powercap):
    def run():
        for name in ("0", "1"):
            count(powercap, name, 5000)
        count(powercap, "0:0", 900)

    assert read_packages(powercap).keys() == {"intel-rapl:0", "intel-rapl:1"}
    assert energy_mj(run, root=powercap, seconds=0.0) == pytest.approx(10.0)


def test_without_a_counter_there_is_no_energy(tmp_path):
    assert energy_mj(lambda: None, root=tmp_path / "nowhere") is None
    folder = tmp_path / "intel-rapl:0"
    folder.mkdir()
    (folder / "name").write_text("package-0")
    assert energy_mj(lambda: None, root=tmp_path) is None  # its counter cannot be read


def test_measured_energy_stands_in_the_profile(tmp_path, experiment, monkeypatch):
    monkeypatch.setattr(command, "energy_mj", lambda run: 8.0)
    out = tmp_path / "mine.toml"
    document = make(experiment, out, Settings(RuntimeChoice("torch"), policies=4, rounds=2))
    profile = load_profile(out)
    policy = Policy.uniform(experiment.network.layer_names, FLOAT)
    assert cost_report(experiment.network, build_cost_model(profile), policy).totals["energy_mj"] == pytest.approx(8.0)
    assert document["energy_mj"] == {"float": 8.0, "low": 8.0}
    assert json.loads(out.with_suffix(".measurements.jsonl").read_text().splitlines()[-3])  # kept for --resume
    assert "RAPL" in " ".join(profile.provenance.notes)
