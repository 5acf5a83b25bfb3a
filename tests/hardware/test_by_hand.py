"""Costs computed by hand of layers called several times, batches above one, formats that differ by side."""

from __future__ import annotations

import pytest
from networks import conv, linear, residual
from profiles import profile

from haq.hardware import build_cost_model
from haq.hardware.costs import cost_report
from haq.values.formats import Precision
from haq.values.network import LayerSpec
from haq.values.policy import Policy

BITS = [f"int{bits}" for bits in range(1, 9)]
W8A8, W4A8, W4A4 = (Precision.parse(text) for text in ("w8a8", "w4a8", "w4a4"))


def latency_us(document: dict, layer: LayerSpec, precision: str) -> float:
    model = build_cost_model(profile(roofline=None, formats=[{"weights": BITS, "activations": BITS}], **document))
    return model.layer_cost(layer, Precision.parse(precision)).latency_ms * 1e3


def test_a_layer_called_three_times_reads_its_weights_three_times() -> None:
    layer = conv("c", 16, 32, 1, 8, calls=3)  # 512 weights, 3,072 elements in and out, each call
    cost = build_cost_model(profile(memory={"bandwidth_gb_per_s": 0.005})).layer_cost(layer, W8A8)
    assert cost.latency_ms == pytest.approx((3 * 512 + 3 * 3072) / 0.005e9 * 1e3 + 3 * 0.002)
    assert cost.size_bytes == 512 + 32 * 4


def test_activations_alone_decide_what_is_converted() -> None:
    network, model = residual(), build_cost_model(profile())
    uniform = cost_report(network, model, Policy.uniform(network.layer_names, W4A8))
    assert (uniform.switches, uniform.joins) == ((), ())
    mixed = {name: W8A8 if index % 2 else W4A8 for index, name in enumerate(network.layer_names)}
    assert cost_report(network, model, Policy(mixed)).switches == ()
    lower = cost_report(network, model, Policy({**mixed, "left": W4A4}))
    assert {(row.written.name, row.wanted.name, row.consumers) for row in lower.switches} == {
        ("int8", "int4", ("left",))
    }


def systolic(**array: int) -> dict:
    section = {"rows": 16, "columns": 32, "max_bits": 8, "min_bits": 4, "weight_buffer_bytes": 1000}
    return {
        "kind": "systolic",
        "memory": {"bandwidth_gb_per_s": 1e9},
        "overhead": {"per_layer_us": 2.0},
        "systolic": {**section, "input_buffer_bytes": 2000, **array},
    }


@pytest.mark.parametrize(("precision", "fused"), [("w8a8", 1), ("w4a4", 4), ("w2a2", 4), ("w1a8", 2), ("w3a5", 2)])
def test_below_the_least_bits_nothing_gets_faster(precision: str, fused: int) -> None:
    passes = 28 * 28 * 2 * 9 * 256 / (16 * fused)
    assert latency_us(systolic(), conv("c", 256, 64, 3, 28), precision) == pytest.approx(passes / 100 + 2.0)


def test_a_systolic_array_pays_its_overhead_for_each_call() -> None:
    once, thrice = conv("c", 256, 64, 3, 28), conv("c", 256, 64, 3, 28, calls=3)
    assert latency_us(systolic(), thrice, "w8a8") == pytest.approx(3 * latency_us(systolic(), once, "w8a8"))


BIT_SERIAL = {
    "kind": "bit_serial",
    "batch": 2,
    "memory": {"bandwidth_gb_per_s": 1.0, "energy_pj_per_byte": 10.0, "buffer_energy_pj_per_byte": 1.0},
    "overhead": {"per_layer_us": 5.0},
    "bit_serial": {"rows": 8, "columns": 8, "depth_bits": 64, "port_bits": 64, "energy_pj_per_bit_mac": 0.5},
}


def test_a_linear_layer_hides_its_weight_fetch_and_a_convolution_half_of_it() -> None:
    # 2 x 16 rows, depth 256 = 4 words, 64 columns: compute 64 x 4 x 8 x 4 cycles, weights 8 x 4 x 64.
    assert latency_us(BIT_SERIAL, linear("f", 256, 64, rows=16), "w8a8") == pytest.approx(8192 / 100 + 5.0)
    # The convolution fetches its weights for each sample of the batch.
    assert latency_us(BIT_SERIAL, conv("c", 256, 64, 1, 4), "w8a8") == pytest.approx((8192 + 2 * 2048 / 2) / 100 + 5.0)


def test_bit_serial_energy_is_of_the_whole_batch() -> None:
    model = build_cost_model(profile(roofline=None, formats=[{"weights": BITS, "activations": BITS}], **BIT_SERIAL))
    energy = model.layer_cost(linear("f", 256, 64, rows=16), W4A8).energy_mj
    moved = 256 * 64 // 2 + 2 * 16 * (256 + 64)
    assert energy == pytest.approx((2 * 16 * 256 * 64 * 4 * 8 * 0.5 + moved * 11.0) * 1e-9)
