"""Number formats as a user meets them: in a search, in costs, in files, and on devices that lack them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import haq
from haq.commands.cli import main

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
WEIGHTS = ["fp8_e4m3", "mxfp4", "mxfp6_e2m3", "nvfp4", "nf4", "vs4_s4", "mx6", "pot4", "kmeans3", "pq2_d2", "int4"]
ACTIVATIONS = ["int8", "fp8_e4m3", "mxfp8_e4m3", "mx9", "nvfp4"]
DEVICE = f"""
title = "A device that knows many formats"
kind = "capability"
[device]
vendor = "none"
chip = "none"
[provenance]
source = "made up"
date = 2026-01-01
derived = "nothing"
[[formats]]
weights = {json.dumps(WEIGHTS)}
activations = {json.dumps(ACTIVATIONS)}
"""
EXPERIMENT = """
schema_version = 1
name = "formats"
model = {{name = "digits_cnn"}}
data = {{name = "digits"}}
device = {{profile = "{device}"}}
budgets = {{size_bytes = "90%"}}
"""
POLICY = {
    "stem": ("fp8_e4m3", "fp8_e4m3"),
    "depthwise": ("pot4", "int8"),
    "pointwise": ("kmeans3", "mx9"),
    "down": ("nf4", "mxfp8_e4m3"),
    "conv": ("mxfp4", "nvfp4"),
    "fc1": ("pq2_d2", "int8"),
    "fc2": ("vs4_s4", "mx9"),
}


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "device.toml"
    path.write_text(DEVICE)
    return path


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.json"
    keys = ("weight_format", "activation_format")
    path.write_text(json.dumps({name: dict(zip(keys, pair, strict=True)) for name, pair in POLICY.items()}))
    return path


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


def test_costs_are_the_bytes_of_the_exported_arrays(run_haq, tmp_path, device, policy):
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(EXPERIMENT.format(device=device))
    code, printed, error = run_haq("cost", experiment, "--policy", policy, "--json")
    assert code == 0, error
    rows = {row["name"]: row["costs"]["size_bytes"] for row in json.loads(printed)["layers"]}
    out = tmp_path / "m.safetensors"
    code, printed, error = run_haq(
        "export", policy, "--experiment", experiment, "--format", "torch", "--out", out, "--check", "--json"
    )
    assert code == 0, error
    assert json.loads(printed)["check"]["agreement"] == 100
    with safe_open(str(out), framework="pt") as file:
        for layer in POLICY:
            stored = [file.get_tensor(key) for key in file.keys() if key.startswith(f"{layer}.weight_")]  # noqa: SIM118
            assert sum(tensor.numel() * tensor.element_size() for tensor in stored) == rows[layer]
    onnx = tmp_path / "m.onnx"
    code, _, error = run_haq("export", policy, "--experiment", experiment, "--format", "onnx", "--out", onnx)
    assert (code, onnx.exists()) == (2, False)
    assert "--format onnx: layer depthwise has pot4 weights, which it cannot say; use --format torch" in error


@pytest.mark.parametrize("name", ["mxfp4", "kmeans4", "nf4"])
def test_a_device_that_lacks_a_format_says_so(run_haq, tmp_path, name):
    out = tmp_path / "run"
    code, _, error = run_haq("search", QUICKSTART, "--out", out, "--set", f"space.weights=['{name}', 'int8']")
    assert (code, out.exists()) == (2, False)
    assert f"space.weights: riscv_xpulpnn runs no layer of this model with {name} weights" in error


def test_an_unknown_format_says_what_is_known(run_haq, tmp_path):
    code, _, error = run_haq("search", QUICKSTART, "--out", tmp_path / "run", "--set", "space.weights=['mxfp5']")
    assert code == 2
    assert "unknown number format 'mxfp5'; known: int1 to int32" in error
    assert "kmeans2 to kmeans8" in error


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 6)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def test_a_search_chooses_among_them_on_live_objects(device):
    torch.manual_seed(0)
    net, x, y = Net(), torch.randn(120, 1, 6, 6), torch.randint(6, (120,))
    found = haq.search(
        net,
        train=(x[:60], y[:60]),
        search=(x[60:90], y[60:90]),
        test=(x[90:], y[90:]),
        device=str(device),
        size="60%",
        max_trials=1,
        settings={
            "space": {
                "weights": ["fp8_e4m3", "mxfp4", "kmeans3", "pot4", "pq2_d2"],
                "activations": ["mxfp8_e4m3", "fp8_e4m3"],
            },
            "sensitivity": {"samples": 32, "metric": "sqnr"},
            "cache": {"enabled": False},
        },
    )
    assert {str(choice.weight) for choice in found.policy.values()} <= {
        "fp8_e4m3",
        "mxfp4",
        "kmeans3",
        "pot4",
        "pq2_d2",
    }
    assert {str(choice.activation) for choice in found.policy.values()} <= {"mxfp8_e4m3", "fp8_e4m3"}
