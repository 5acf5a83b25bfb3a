"""Instructions of an emulated Cortex-M7: deterministic, resumed, and near what the profile predicts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from haq.edges.progress import Silent
from haq.experiment.experiment import Experiment
from haq.hardware import build_cost_model, load_profile
from haq.hardware.costs import cost_report
from haq.profiling import microcontroller
from haq.profiling.microcontroller import check_options, is_emulated, profile_microcontroller, validate_microcontroller
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy

_QUICKSTART = Path(__file__).parents[2] / "experiments/quickstart.toml"
needs_emulator = pytest.mark.skipif(
    shutil.which("qemu-system-arm") is None or shutil.which("arm-none-eabi-gcc") is None, reason="no emulator"
)


@needs_emulator
def test_counts_come_back_in_the_costs_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = (Precision.parse("w8a8"), Precision.parse("w4a4"))
    monkeypatch.setattr(microcontroller, "PRECISIONS", two)
    experiment, out = Experiment.load(_QUICKSTART), tmp_path / "m7.toml"
    found = profile_microcontroller(experiment, out, resume=False, command="haq profile", show=Silent())
    assert is_emulated(out)
    model = build_cost_model(load_profile(out))
    for precision in two:
        policy = Policy.uniform(experiment.network.layer_names, precision)
        predicted = cost_report(experiment.network, model, policy).totals["latency_ms"]
        assert predicted == pytest.approx(found["instructions"][str(precision)] / 1e6, rel=1e-6)
    journal = out.with_suffix(".measurements.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]))  # killed before the last precision: counted anew, to the instruction
    again = profile_microcontroller(experiment, out, resume=True, command="haq profile", show=Silent())
    assert again["instructions"] == found["instructions"]
    checked = validate_microcontroller(experiment, out, policies=3, seed=1, out=tmp_path / "v", show=Silent())
    assert checked["models"]["this profile"]["mean"] < 10
    journal.write_text(lines[0].replace("mps2-an500", "another board") + "".join(lines[1:]))
    with pytest.raises(InputError, match="the setup changed: board"):
        profile_microcontroller(experiment, out, resume=True, command="haq profile", show=Silent())


def test_without_the_emulator_the_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="needs arm-none-eabi-gcc, which is not installed; install Debian's"):
        profile_microcontroller(
            Experiment.load(_QUICKSTART), tmp_path / "m7.toml", resume=False, command="", show=Silent()
        )


def test_options_of_timed_runtimes_are_refused() -> None:
    with pytest.raises(InputError, match="--rounds 5: is not for the emulated board"):
        check_options(rounds=5)
