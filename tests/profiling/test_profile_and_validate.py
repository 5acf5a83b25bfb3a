"""`haq profile` and `haq validate`: on a device whose costs are known, and once on this machine."""

import json
import re
from pathlib import Path

import pytest
from known_device import LOW, KnownDevice

from haq import Experiment, InputError, load_profile, run_experiment
from haq.edges.progress import Silent
from haq.hardware import build_cost_model, profile_warnings
from haq.hardware.costs import cost_report
from haq.hardware.kinds.table import TableModel
from haq.profiling import machine as command
from haq.profiling import validate
from haq.profiling.machine import Settings, profile_machine
from haq.profiling.policies import mixed_policies
from haq.profiling.runtimes.choice import RuntimeChoice
from haq.profiling.validate import accuracy, validate_profile

pytest.importorskip("onnxruntime")
QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
SETTINGS = Settings(policies=14, rounds=4)


@pytest.fixture(scope="module")
def experiment():
    return Experiment.load(QUICKSTART)


@pytest.fixture
def known(monkeypatch, experiment):
    def use(**options) -> KnownDevice:
        device = KnownDevice(experiment, **options)
        for module in (command, validate):
            monkeypatch.setattr(module, "open_runtime", lambda *_, **__: device)
        monkeypatch.setattr("haq.profiling.timing._SLICE_SECONDS", 0.0)
        return device

    return use


def make(experiment, out, **options):
    arguments = {"settings": SETTINGS, "resume": False, "command": "haq profile", "show": Silent()} | options
    return profile_machine(experiment, out, **arguments)


def test_the_profile_predicts_the_device(tmp_path, experiment, known):
    device = known()
    document = make(experiment, tmp_path / "mine.toml")
    profile = load_profile(tmp_path / "mine.toml")
    model = build_cost_model(profile)
    assert isinstance(model, TableModel)
    assert {str(precision) for precision in profile.all_precisions} == {"wfp32afp32", "w8a8"}
    assert document["float_ms"] == pytest.approx(7.0)
    assert document["noise_floor_percent"] == 0
    for policy in mixed_policies(experiment.network.layer_names, LOW, 10, seed=9):
        predicted = cost_report(experiment.network, model, policy).totals["latency_ms"]
        assert predicted == pytest.approx(device.ms(policy), rel=0.03)


def test_a_killed_profiling_goes_on_where_it_stopped(tmp_path, experiment, known):
    known(dies_after=200)
    out = tmp_path / "mine.toml"
    with pytest.raises(KeyboardInterrupt):
        make(experiment, out)
    kept = out.with_suffix(".measurements.jsonl").read_text().splitlines()
    assert not out.exists()
    assert 3 < len(kept) < 7  # setup, layers, unmet, and some but not all of four rounds
    known()
    with pytest.raises(InputError, match="measurements already exist; add --resume"):
        make(experiment, out)
    document = make(experiment, out, resume=True)
    lines = out.with_suffix(".measurements.jsonl").read_text().splitlines()
    assert lines[: len(kept)] == kept
    assert sum(line.startswith('{"round"') for line in lines) == document["rounds"] == 4


def test_validation_compares_held_out_policies(tmp_path, experiment, known):
    known()
    make(experiment, tmp_path / "mine.toml")
    document = validate_profile(
        experiment,
        tmp_path / "mine.toml",
        policies=20,
        rounds=2,
        seed=1,
        out=tmp_path / "v",
        show=Silent(),
        baselines=False,
    )
    fitted = set(load_profile(tmp_path / "mine.toml").measured.policies)
    found = document["models"]["this profile"]
    assert found["mean"] < 2
    assert found["spearman"] > 0.99
    assert len(document["rows"]) == 20
    assert all(row["measured_ms"] > 0 for row in document["rows"])
    assert len(fitted) == 16
    assert json.loads((tmp_path / "v" / "validation.json").read_text())["models"]["this profile"] == found
    assert (tmp_path / "v" / "validation.png").stat().st_size > 5000


def test_a_machine_that_is_slower_now_is_told_from_a_wrong_profile(tmp_path, experiment, known, monkeypatch):
    device = known()
    make(experiment, tmp_path / "mine.toml")
    monkeypatch.setattr(device, "ms", lambda policy: 1.25 * KnownDevice.ms(device, policy))
    options = {"policies": 10, "rounds": 2, "seed": 1, "show": Silent(), "baselines": False}
    document = validate_profile(experiment, tmp_path / "mine.toml", out=tmp_path / "v", **options)
    assert document["pace"] == pytest.approx(1.25, rel=1e-3)
    assert document["models"]["this profile"]["mean"] < 2
    assert document["as_timed"]["bias"] == pytest.approx(-20, abs=2)


def test_accuracy_by_hand():
    found = accuracy([11.0, 18.0, 30.0], [10.0, 20.0, 30.0])
    assert (found.mean, found.worst) == (pytest.approx(20 / 3), pytest.approx(10))
    assert found.bias == pytest.approx(0)
    assert found.spearman == pytest.approx(1)


def test_a_profile_from_elsewhere_is_used_only_with_a_warning(tmp_path, experiment, known):
    known()
    path = tmp_path / "mine.toml"
    make(experiment, path)
    text = path.read_text()
    version = __import__("onnxruntime").__version__
    here = text.replace('package_version = "1.0"', f'package_version = "{version}"')
    path.write_text(here)
    assert profile_warnings(load_profile(path), experiment.network) == ()
    cpu = load_profile(path).measured.cpu
    path.write_text(text.replace(f'cpu = "{cpu}"', 'cpu = "Z80"').replace("threads = 1", "threads = 999"))
    warnings = profile_warnings(load_profile(path), experiment.network)
    assert [word for word in ("not Z80", f"is {version} here, not 1.0", "fewer than 999") if word in " ".join(warnings)]
    assert len(warnings) == 3
    other = type(experiment.network)(experiment.network.layers[:-1], ())
    assert "was measured for another model" in profile_warnings(load_profile(path), other)[-1]


@pytest.mark.parametrize(
    ("out", "settings", "message"),
    [
        ("mine.json", Settings(), "a profile is a TOML file; end its name in .toml"),
        ("mine.toml", Settings(RuntimeChoice("tvm")), "--runtime 'tvm': unknown; known: onnxruntime, torch, command"),
        ("mine.toml", Settings(RuntimeChoice(threads=4096)), r"--threads 4096: this process may use \d+ processors"),
    ],
    ids=["out", "runtime", "threads"],
)
def test_what_cannot_be_measured_is_one_line(tmp_path, experiment, out, settings, message):
    with pytest.raises(InputError, match=message):
        make(experiment, tmp_path / out, settings=settings)
    assert not list(tmp_path.iterdir())


def test_affine_weights_are_refused(tmp_path):
    affine = Experiment.load(QUICKSTART, overrides=["quantization.weight_scheme=affine"])
    with pytest.raises(InputError, match=r"no fast kernels for it; set quantization.weight_scheme = 'symmetric'"):
        make(affine, tmp_path / "mine.toml")


def test_a_profile_that_was_not_measured_cannot_be_validated(tmp_path, experiment):
    with pytest.raises(InputError, match="xeon_vnni_ort: was not measured on a machine"):
        validate_profile(experiment, "xeon_vnni_ort", policies=2, rounds=2, seed=1, out=tmp_path, show=Silent())


def test_onnxruntime_on_this_machine(tmp_path, experiment):
    out = tmp_path / "mine.toml"
    document = make(experiment, out, settings=Settings(policies=4, rounds=2))
    assert document["executed_otherwise"] == {}
    assert document["float_ms"] > 0
    assert set(document["layers"]) == set(experiment.network.layer_names)
    assert all(row["float_ms"] > 0 and row["low_ms"] > 0 for row in document["layers"].values())
    assert profile_warnings(load_profile(out), experiment.network) == ()
    checked = validate_profile(experiment, out, policies=2, rounds=2, seed=1, out=tmp_path / "v", show=Silent())
    assert set(checked["models"]) == {
        "this profile",
        "summed stand-alone times",
        "bit operations, through both ends",
    }


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_search_and_a_validation_on_another_machine_s_profile_warn(tmp_path, experiment, known):
    known()
    path = tmp_path / "mine.toml"
    make(experiment, path)
    path.write_text(path.read_text().replace('cpu = "', 'cpu = "Z80, once '))
    overrides = [
        f"device.profile='{path}'",
        "space.weights=['int8', 'fp32']",
        "space.activations=['int8', 'fp32']",
        "budgets={latency_ms='150%'}",
        "search.max_trials=1",
    ]
    heard = Notes()
    chosen = Experiment.load(QUICKSTART, overrides=overrides)
    _, result = run_experiment(chosen, out=tmp_path / "run", reporter=heard)
    warning = "warning: profile mine was measured elsewhere: this processor is .*, not Z80, once"
    assert any(re.match(warning, note) for note in heard.notes)
    assert any("not Z80, once" in text for text in result["warnings"])
    heard = Notes()
    arguments = {"policies": 2, "rounds": 2, "seed": 1, "out": tmp_path / "v", "show": heard, "baselines": False}
    assert "not Z80, once" in validate_profile(experiment, path, **arguments)["warnings"][0]
    assert any(re.match(warning, note) for note in heard.notes)
    confirmed = Experiment.load(QUICKSTART, overrides=[*overrides, "search.remeasure=2"])
    with pytest.raises(InputError, match=r"search\.remeasure: profile mine was measured elsewhere"):
        run_experiment(confirmed, out=tmp_path / "run2")


def test_an_operator_that_cannot_be_exported_is_named(tmp_path, monkeypatch):
    (tmp_path / "odd_model.py").write_text(
        "import torch\n"
        "class Odd(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.fc = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(144, 10)\n"
        "    def forward(self, x):\n"
        "        return self.fc(torch.linalg.qr(self.conv(x))[0].flatten(1))\n"
    )
    monkeypatch.chdir(tmp_path)
    odd = Experiment.load(QUICKSTART, overrides=["model={factory='odd_model:Odd'}"])
    with pytest.raises(InputError, match=r"Odd cannot be exported to ONNX: .*linalg_qr"):
        make(odd, tmp_path / "mine.toml")


def test_a_profile_is_not_resumed_with_other_threads(tmp_path, experiment, known):
    known()
    make(experiment, tmp_path / "mine.toml")
    other = Settings(RuntimeChoice(threads=2), policies=14, rounds=4)
    with pytest.raises(InputError, match=r"the setup changed: threads \(1 -> 2\)"):
        make(experiment, tmp_path / "mine.toml", settings=other, resume=True)
