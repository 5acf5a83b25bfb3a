from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from networks import conv, linear, mobilenet_v2

from haq.hardware import build_cost_model, load_profile
from haq.values.formats import Format, Precision

REFERENCE = Path(__file__).parents[1] / "data" / "haq_mobilenetv2_latency_table.json"
CLOUD = build_cost_model(load_profile("bismo_cloud"))
EDGE = build_cost_model(load_profile("bismo_edge"))
CYCLE_MS = 1e-3 / 200


def precision(weight_bits: int, activation_bits: int) -> Precision:
    return Precision(Format.integer(weight_bits), Format.integer(activation_bits))


@pytest.fixture(scope="module")
def published() -> np.ndarray:
    """Cycles of HAQ's table: [layer, weight bits - 1, activation bits - 1]."""
    return np.array(json.loads(REFERENCE.read_text())["table"], dtype=float)


@pytest.fixture(scope="module")
def predicted() -> np.ndarray:
    layers, bits = mobilenet_v2().layers, range(2, 9)
    cells = [[[CLOUD.layer_cost(x, precision(w, a)).latency_ms for a in bits] for w in bits] for x in layers]
    return np.array(cells) / CYCLE_MS


def test_mobilenet_v2_has_the_published_number_of_layers_and_macs() -> None:
    network = mobilenet_v2()
    assert len(network.layers) == 53
    assert network.macs == 300_774_272


@pytest.mark.parametrize(("w", "a"), [(8, 8), (6, 6), (4, 4), (2, 2), (4, 8), (8, 4)])
def test_network_totals_are_within_three_per_cent_of_the_published_table(
    published: np.ndarray, predicted: np.ndarray, w: int, a: int
) -> None:
    total = predicted[:, w - 2, a - 2].sum()
    assert total == pytest.approx(published[:, w - 1, a - 1].sum(), rel=0.03)


def test_cells_follow_the_published_table(published: np.ndarray, predicted: np.ndarray) -> None:
    deviation = np.abs(predicted / published[:, 1:, 1:] - 1)
    assert deviation.mean() < 0.05
    assert deviation[0].max() < 0.02  # the first layer: its published row ends in a step of its own at 8-bit weights


def test_activation_bits_weigh_more_than_weight_bits(predicted: np.ndarray) -> None:
    eight = predicted[:, 6, 6].sum()
    assert predicted[:, 6, 2].sum() / eight == pytest.approx(0.506, abs=0.01)  # w8a4
    assert predicted[:, 2, 6].sum() / eight == pytest.approx(0.788, abs=0.01)  # w4a8


def test_a_convolution_by_hand() -> None:
    # M = 16 x 14 x 14 = 3136 rows, K = 64, N = 384: weights 8 x 384 x 16 = 49,152; activations 8 x 3136 = 25,088;
    # compute 64 x 196 x 24 x 1 = 301,056
    cost = CLOUD.layer_cost(conv("c", 64, 384, 1, 14), precision(8, 8))
    assert cost.latency_ms == pytest.approx((301_056 + 49_152 / 2) * CYCLE_MS)


def test_a_linear_layer_fetches_its_weights_once_per_batch() -> None:
    cost = CLOUD.layer_cost(linear("f", 1280, 1000), precision(6, 3))
    assert cost.latency_ms == pytest.approx(6 * 1000 * 5 * CYCLE_MS)


def test_a_depthwise_layer_by_hand() -> None:
    cost = CLOUD.layer_cost(conv("d", 96, 96, 3, 56, groups=96), precision(4, 5))
    assert cost.latency_ms == pytest.approx(5 * 16 * 56 * 56 * 6 * CYCLE_MS)


def test_narrow_ports_fetch_slower_and_energy_follows_the_bits() -> None:
    layer = linear("f", 512, 100)  # two words of 256 bit, each in four beats of 64
    assert EDGE.layer_cost(layer, precision(4, 2)).latency_ms == pytest.approx(4 * 100 * 2 * 4 * CYCLE_MS)
    assert EDGE.layer_cost(layer, precision(4, 2)).energy_mj == pytest.approx(51_200 * 8 * 1.04e-9)


def test_the_cloud_states_no_energy() -> None:
    assert "energy_mj" not in CLOUD.metrics
