"""`haq inspect`, `haq init`, `haq hardware template` and `check`."""

import json
import sys
from pathlib import Path

import pytest

from haq import load_experiment
from haq.commands.cli import main

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
ZOO = ["--model", "digits_cnn", "--data", "digits"]
MODEL = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2))

def both():
    return net(), torch.zeros(1, 3, 6, 6)
"""


@pytest.fixture
def haq(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["haq", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, (captured.err.splitlines() or [""])[-1]

    return run


def test_an_experiment_is_inspected(haq):
    code, printed, _ = haq("inspect", QUICKSTART, "--json")
    document = json.loads(printed)
    assert code == 0
    assert document["device"] == "riscv_xpulpnn"
    assert sum(layer["parameters"] for layer in document["layers"]) == 144 + 144 + 256 + 4608 + 9216 + 8192 + 640
    assert document["layers"][0]["key"] == "conv2d_i1_o16_k3x3_s1x1_g1_in8x8_out8x8"


@pytest.mark.parametrize("arguments", [("nets:both",), ("nets:net", "--input", "1x3x6x6")])
def test_ones_own_function_is_inspected(haq, tmp_path, arguments):
    (tmp_path / "nets.py").write_text(MODEL)
    sys.modules.pop("nets", None)
    code, printed, _ = haq("inspect", *arguments, "--device", "cortex_m7", "--json")
    document = json.loads(printed)
    assert code == 0
    assert [layer["parameters"] for layer in document["layers"]] == [162, 192]
    assert document["macs"] >= 16 * 162 + 192
    assert {part["module"] for part in document["left_in_float"]} == {"0", "4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nets:net",), "add --input"),
        (("nets:net", "--input", "1xa"), "--input 1xa: is no shape"),
        (("nets:none",), "has no 'none'"),
        (("nothing",), "no such file"),
        (("nets:both", "--device", "abacus"), "unknown hardware profile 'abacus'"),
    ],
)
def test_what_cannot_be_inspected_is_one_line(haq, tmp_path, arguments, message):
    (tmp_path / "nets.py").write_text(MODEL)
    sys.modules.pop("nets", None)
    code, _, line = haq("inspect", *arguments)
    assert code == 2
    assert message in line


def test_init_writes_an_experiment_that_loads(haq, tmp_path):
    given = ["--model", "digits_cnn", "--data", "digits", "--device", "edge_tpu", "--budget", "size_bytes=100%"]
    code, printed, _ = haq("init", *given, "--out", "mine.toml")
    config = load_experiment(tmp_path / "mine.toml")
    assert code == 0
    assert "haq search mine.toml" in printed
    assert (config.model.name, config.device.profile, config.budgets) == (
        "digits_cnn",
        "edge_tpu",
        {"size_bytes": "100%"},
    )
    # Six of the thirteen shipped devices have no 2-bit weights: without [space] they get what they accelerate.
    code, printed, _ = haq("inspect", "mine.toml", "--json")
    assert json.loads(printed)["layers"][0]["formats"] == ["w8a8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "digits_cnn", "--data", "digits", "--device", "abacus", "--budget", "size_bytes=50%"], "abacus"),
        (
            ["--model", "digits_cnn", "--data", "digits", "--device", "edge_tpu", "--budget", "size=50%"],
            "unknown budget",
        ),
        (["--model", "digits_cnn", "--data", "digits", "--device", "edge_tpu", "--budget", "size_bytes=x"], "--budget"),
        (["--data", "digits"], "--model: is needed"),
    ],
)
def test_a_bad_answer_leaves_no_file(haq, tmp_path, arguments, message, monkeypatch):
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    code, _, line = haq("init", *arguments, "--out", "mine.toml")
    assert code == 2
    assert message in line
    assert not (tmp_path / "mine.toml").exists()


def test_a_template_filled_in_is_a_device(haq, tmp_path):
    code, printed, _ = haq("hardware", "template", QUICKSTART, "--precisions", "w8a8,w4a8")
    rows = printed.splitlines()
    assert code == 0
    assert len(rows) == 1 + 7 * 2
    (tmp_path / "mine.csv").write_text("\n".join([rows[0], *(row.replace(",,", ",0.5,") for row in rows[1:-1])]) + "\n")
    (tmp_path / "mine.toml").write_text(
        """
        title = "Mine"
        kind = "table"
        device = { vendor = "me", chip = "mine" }
        provenance = { source = "me", date = 2026-01-02, measured = "all" }
        formats = [{ pairs = ["w8a8", "w4a8"] }]
        table = { file = "mine.csv" }
        switch = [{ from = "*", to = "*", fixed_us = 0.0, per_element_ns = 0.0 }]
        """
    )
    assert haq("hardware", "check", "mine.toml")[0] == 0
    code, _, line = haq("hardware", "check", "mine.toml", "--experiment", QUICKSTART)
    assert code == 2
    assert "1 costs are missing" in line
    assert "linear_i64_o10_n1" in line
