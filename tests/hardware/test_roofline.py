from __future__ import annotations

import pytest
from networks import conv
from profiles import profile

from haq.hardware import build_cost_model
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.network import Tensor
from haq.values.trial import Cost

CONV = conv("c", 16, 32, 1, 8)  # 32,768 MACs, 512 weights, 1,024 elements in, 2,048 out
W8A8, W4A8, W4A4 = (Precision.parse(text) for text in ("w8a8", "w4a8", "w4a4"))
INT8, INT4, FP32 = (Format.parse(name) for name in ("int8", "int4", "fp32"))
TENSOR = Tensor("t", "c", ("d",), 1000)


def test_a_compute_bound_layer() -> None:
    cost = build_cost_model(profile()).layer_cost(CONV, W8A8)
    assert cost.latency_ms == pytest.approx(32768 / 0.5e9 * 1e3 + 0.002)
    assert cost.energy_mj == pytest.approx((32768 * 0.25 + (512 + 3072) * 101) * 1e-9)
    assert cost.size_bytes == 512 + 32 * 4
    assert cost.bops == 32768 * 64
    assert cost.peak_activation_bytes == 0


def test_a_memory_bound_layer() -> None:
    model = build_cost_model(profile(memory={"bandwidth_gb_per_s": 0.01}))
    assert model.layer_cost(CONV, W4A4).latency_ms == pytest.approx((256 + 1536) / 0.01e9 * 1e3 + 0.002)


def test_the_buffer_keeps_activations_on_the_chip() -> None:
    memory = {"bandwidth_gb_per_s": 0.005, "buffer_bytes": 3000, "energy_pj_per_byte": 100.0}
    cost = build_cost_model(profile(memory=memory)).layer_cost(CONV, W8A8)
    assert cost.latency_ms == pytest.approx((512 + 72) / 0.005e9 * 1e3 + 0.002)
    assert cost.energy_mj == pytest.approx((32768 * 0.25 + 584 * 100) * 1e-9)


def test_a_separate_weight_memory_works_in_parallel() -> None:
    memory = {"bandwidth_gb_per_s": 0.01, "weight_bandwidth_gb_per_s": 0.001}
    cost = build_cost_model(profile(memory=memory)).layer_cost(CONV, W8A8)
    assert cost.latency_ms == pytest.approx(max(512 / 0.001e9, 3072 / 0.01e9) * 1e3 + 0.002)


def test_rate_per_cycle_batch_and_calls() -> None:
    rates = {"rates": [{"mac_per_cycle": 4.0}]}
    model = build_cost_model(
        profile(
            roofline=rates,
            batch=3,
            memory={},
            switch=[{"from": "*", "to": "*", "fixed_us": 0.0, "per_element_ns": 0.0}],
        )
    )
    cost = model.layer_cost(conv("c", 16, 32, 1, 8, calls=2), W8A8)
    assert cost.latency_ms == pytest.approx(3 * 2 * 32768 / (4 * 100e6) * 1e3 + 2 * 0.002)
    assert cost.size_bytes == 512 + 128
    assert cost.bops == 3 * 2 * 32768 * 64
    assert "energy_mj" not in model.metrics
    assert cost.energy_mj == 0


def test_the_first_rate_that_fits_counts() -> None:
    rates = [
        {"pairs": ["w4a8"], "ops": ["conv"], "gmac_per_s": 8.0},
        {"ops": ["pointwise"], "gmac_per_s": 4.0},
        {"gmac_per_s": 1.0},
    ]
    model = build_cost_model(profile(roofline={"rates": rates}, overhead={}))
    assert model.layer_cost(CONV, W4A8).latency_ms == pytest.approx(32768 / 8e9 * 1e3)
    assert model.layer_cost(CONV, W8A8).latency_ms == pytest.approx(32768 / 4e9 * 1e3)
    assert model.layer_cost(CONV, W4A4).latency_ms == pytest.approx(32768 / 4e9 * 1e3)
    assert model.layer_cost(conv("d", 8, 8, 3, 8), W8A8).latency_ms == pytest.approx(8 * 8 * 9 * 64 / 1e9 * 1e3)


def test_a_rate_may_have_an_overhead_of_its_own() -> None:
    model = build_cost_model(profile(roofline={"rates": [{"gmac_per_s": 1.0, "overhead_us": 5.0}]}))
    cost = model.layer_cost(conv("c", 16, 32, 1, 8, calls=2), W8A8)
    assert cost.latency_ms == pytest.approx(2 * 32768 / 1e9 * 1e3 + 2 * 0.007)


def test_alignment_that_coarsens_as_bits_shrink_can_make_fewer_bits_no_faster() -> None:
    rates = [{"pairs": ["w4a4"], "gmac_per_s": 2.0}, {"gmac_per_s": 1.0}]
    alignment = [{"pairs": ["w8a8"], "in_channels": 16}, {"pairs": ["w4a4"], "in_channels": 32}]
    model = build_cost_model(profile(roofline={"rates": rates}, alignment=alignment, overhead={}))
    narrow, wide = conv("n", 16, 32, 1, 8), conv("w", 32, 32, 1, 8)
    assert model.layer_cost(narrow, W4A4).latency_ms == pytest.approx(model.layer_cost(narrow, W8A8).latency_ms)
    assert model.layer_cost(wide, W4A4).latency_ms == pytest.approx(model.layer_cost(wide, W8A8).latency_ms / 2)


def test_an_unsupported_precision_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"layer 'c': toy does not run pointwise layers in w2a8; it supports w4a4, w4a8, w8a8"
    ):
        build_cost_model(profile()).layer_cost(CONV, Precision.parse("w2a8"))


def test_a_switch_costs_a_fixed_part_and_a_part_per_element() -> None:
    model = build_cost_model(profile(batch=4))
    cost = model.switch_cost(TENSOR, INT8, INT4)
    assert cost.latency_ms == pytest.approx(0.003 + 4000 * 0.5e-6)
    assert cost.energy_mj == pytest.approx(4000 * 7e-9)
    assert (cost.size_bytes, cost.bops) == (0, 0)


def test_a_switch_without_a_rate_moves_both_copies_through_memory() -> None:
    cost = build_cost_model(profile()).switch_cost(TENSOR, FP32, INT4)
    assert cost.latency_ms == pytest.approx(0.001 + 4500 / 10e9 * 1e3)
    assert cost.energy_mj == pytest.approx(4500 * 100e-9)


def test_equal_formats_switch_and_join_for_free() -> None:
    model = build_cost_model(profile())
    assert model.switch_cost(TENSOR, INT8, INT8) == Cost()
    assert model.join_cost(1000, INT8, INT8) == Cost()


def test_a_join_without_rows_of_its_own_converts_the_other_operand() -> None:
    model = build_cost_model(profile())
    assert model.join_cost(1000, INT4, INT8) == model.switch_cost(TENSOR, INT8, INT4)


def test_a_join_with_rows_of_its_own() -> None:
    model = build_cost_model(profile(join=[{"from": "*", "to": "*", "fixed_us": 5.0, "per_element_ns": 2.0}]))
    assert model.join_cost(1000, INT4, INT8).latency_ms == pytest.approx(0.005 + 0.002)


def test_activations_are_packed_like_weights() -> None:
    model = build_cost_model(profile(packing={"word_bits": 32}, batch=2))
    assert model.storage_bytes(25, Format.parse("int3")) == 20
