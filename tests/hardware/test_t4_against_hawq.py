"""The T4 profile against the layer times of ResNet-18 that HAWQ-V3 measured and published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import conv

from haq.hardware import build_cost_model, load_profile
from haq.values.formats import Precision
from haq.values.network import LayerSpec

REFERENCE = Path(__file__).parents[1] / "data" / "hawq_v3_resnet.json"


def layer(name: str) -> LayerSpec:
    """A layer of ResNet-18 by its published name, such as `stage2.unit1.identity_convbn`."""
    stage, unit, role = name.split(".")
    channels, size = 64 * 2 ** (int(stage[-1]) - 1), 56 // 2 ** (int(stage[-1]) - 1)
    if stage == "stage1" or unit != "unit1" or role == "convbn2":
        return conv(name, channels, channels, 3, size)
    return conv(name, channels // 2, channels, 1 if role == "identity_convbn" else 3, 2 * size, stride=2)


@pytest.fixture(scope="module")
def published() -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = json.loads(REFERENCE.read_text())["networks"]["resnet18"]["layers"]
    return layers


def test_the_layers_are_those_of_the_published_table(published: list[dict[str, Any]]) -> None:
    for row in published:
        four = row["choices"][0]["costs"]
        assert layer(row["name"]).macs * 16 == four["bops"] * 1024
        assert layer(row["name"]).params / 2 == four["size_bytes"]


@pytest.mark.parametrize(("choice", "precision", "error"), [(0, "w4a4", 0.075), (1, "w8a8", 0.070)])
def test_predicted_times_follow_the_measured_ones(
    published: list[dict[str, Any]], choice: int, precision: str, error: float
) -> None:
    model = build_cost_model(load_profile("nvidia_t4"))
    measured = np.array([row["choices"][choice]["costs"]["latency_ms"] for row in published])
    costs = [model.layer_cost(layer(row["name"]), Precision.parse(precision)) for row in published]
    predicted = np.array([cost.latency_ms for cost in costs])
    assert predicted.sum() == pytest.approx(measured.sum(), rel=0.05)
    assert np.abs(predicted / measured - 1).mean() == pytest.approx(error, abs=0.001)  # as docs/results.md says
