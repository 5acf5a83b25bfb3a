"""Findings of a network that has every habit, checked against values worked out another way."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from haq import Experiment, InputError, Precision
from haq.commands import cli
from haq.lint import RULES, lint_experiment
from haq.values.policy import Policy

HERE = Path(__file__).parent
DEVICE = """
title = "Aligned"
kind = "roofline"
device = { vendor = "nobody", chip = "none" }
memory = { bandwidth_gb_per_s = 1000.0 }
provenance = { source = "made up for tests", date = 2026-01-02, derived = "all of it" }

[[formats]]
weights = ["int4", "int8"]
activations = ["int4", "int8"]

[[alignment]]
out_channels = 32

[[roofline.rates]]
gmac_per_s = 1.0

[[switch]]
from = "*"
to = "*"
fixed_us = 500.0
"""
EXPERIMENT = """
name = "habits"
model.factory = "habits:model"
data.factory = "habits:data"
device.profile = "aligned.toml"
space = { weights = ["int4", "int8"], activations = ["int4", "int8"] }
budgets.size_bytes = "60%"
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("habits")
    (folder / "aligned.toml").write_text(DEVICE)
    (folder / "habits.toml").write_text(EXPERIMENT)
    (folder / "habits.py").write_text((HERE / "habits.py").read_text())
    return folder / "habits.toml"


@pytest.fixture(scope="module")
def loaded(experiment):
    return Experiment.load(experiment)


@pytest.fixture(scope="module")
def findings(loaded):
    return lint_experiment(loaded, precision="w4a4", samples=64)


def of(findings, rule):
    return {finding.layer: finding for finding in findings if finding.rule == rule}


def test_every_habit_is_found_where_it_is(findings):
    assert set(of(findings, "unbounded_activation")) == {"depthwise"}
    assert set(of(findings, "squeeze_excitation")) == {"gate.up"}
    assert set(of(findings, "depthwise")) == {"depthwise"}
    assert "query" in of(findings, "channel_ranges")
    assert "mixed" in of(findings, "join_ranges")
    assert len(of(findings, "large_softmax")) == 1
    assert set(of(findings, "switches")) >= {"mixed"}


def test_they_are_ranked_by_what_they_cost(findings):
    shares = [finding.share for finding in findings]
    assert shares == sorted(shares, reverse=True)
    assert all(0.0 <= share <= 1.0 for share in shares)


def test_a_loss_is_what_quantizing_that_layer_alone_costs(loaded, findings):
    model, loss = loaded.quantized, loaded.loss
    split = loaded.data.train.head(64)
    with torch.no_grad():
        model.apply(None)
        before = float(loss(model(split.inputs), split.targets))
        floats = dict.fromkeys(model.layers, Precision.parse("wfp32afp32"))
        model.apply(Policy({**floats, "depthwise": Precision.parse("w4a4")}))
        after = float(loss(model(split.inputs), split.targets))
        model.apply(None)
    assert of(findings, "depthwise")["depthwise"].cost == pytest.approx(after - before, rel=1e-3, abs=1e-6)


def test_the_sqnr_is_that_of_torchs_own_operator(loaded, findings):
    model = loaded.quantized
    x = torch.nn.functional.silu(model.module.stem(loaded.data.train.head(64).inputs)).detach()
    quantizer = model.activation_quantizer("depthwise", Precision.parse("w4a4").activation)
    fake = torch.fake_quantize_per_tensor_affine(x, quantizer.scale, quantizer.zero_point, 0, 15)
    wanted = 10 * torch.log10(x.square().sum() / (fake - x).square().sum())
    assert of(findings, "unbounded_activation")["depthwise"].value == pytest.approx(float(wanted), abs=0.5)


def test_thirty_channels_run_as_thirty_two(findings):
    """At 1 GMAC/s: 8 x 8 places, 9 weights each, two channels of 32 for nothing."""
    found = of(findings, "alignment")["stem"]
    assert (found.value, found.unit) == (30.0, "latency_ms")
    assert "; 32 take the same time" in found.meaning
    assert found.cost == pytest.approx(64 * 9 * 2 / 1e9 * 1e3)


def test_bits_that_gain_no_time_are_told(findings):
    """The rate is the same for all formats, so no layer gains."""
    free = of(findings, "free_bits")
    assert set(free) == {"stem", "depthwise", "gate.down", "gate.up", "mixed", "query", "head"}
    assert all(finding.value == pytest.approx(0.0, abs=1e-9) for finding in free.values())


def test_per_tensor_weights_of_unequal_channels_are_told(experiment):
    loaded = Experiment.load(experiment, overrides=["quantization.weight_granularity=tensor"])
    found = of(lint_experiment(loaded, precision="w4a4", samples=32), "weight_ranges")
    assert found["mixed"].value > 5


def test_the_command_prints_json(experiment, monkeypatch, capsys, tmp_path):
    arguments = ["haq", "lint", str(experiment), "--samples", "16", "--json", "--out", str(tmp_path / "lint.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "lint.json").read_text())
    assert {finding["rule"] for finding in document["findings"]} <= set(RULES)
    assert all(set(finding) >= {"rule", "layer", "value", "cost", "advice"} for finding in document["findings"])


def test_a_precision_that_is_none_is_refused(loaded):
    with pytest.raises(InputError, match="--precision w4: "):
        lint_experiment(loaded, precision="w4")
