from __future__ import annotations

import pytest
from networks import conv, linear
from profiles import profile

from haq.hardware import build_cost_model, load_profile
from haq.values.formats import Precision
from haq.values.network import LayerSpec

BITS = [f"int{bits}" for bits in range(2, 9)]
ARRAY = {"rows": 16, "columns": 32, "max_bits": 8, "min_bits": 2, "energy_pj_per_cycle": 235.1}
BUFFERS = {"weight_buffer_bytes": 1000, "input_buffer_bytes": 2000}


def toy(*, bandwidth: float, **array: object):
    return build_cost_model(
        profile(
            kind="systolic",
            roofline=None,
            overhead={},
            formats=[{"weights": BITS, "activations": BITS}],
            memory={"bandwidth_gb_per_s": bandwidth, "energy_pj_per_byte": 100.0},
            systolic={**ARRAY, **BUFFERS, **array},
        )
    )


def cycles(layer: LayerSpec, precision: str) -> float:
    """At 100 MHz, with memory so fast that compute decides."""
    return toy(bandwidth=1e9).layer_cost(layer, Precision.parse(precision)).latency_ms * 1e5


@pytest.mark.parametrize(
    ("precision", "fused"),
    [("w8a8", 1), ("w4a8", 2), ("w2a8", 4), ("w4a4", 4), ("w2a4", 8), ("w2a2", 16), ("w3a3", 4), ("w5a7", 1)],
)
def test_fewer_bits_fuse_more_products(precision: str, fused: int) -> None:
    layer = conv("c", 256, 64, 3, 28)
    assert cycles(layer, precision) == pytest.approx(28 * 28 * 2 * 9 * 256 / (16 * fused))


def test_the_alignment_of_the_inner_dimension_coarsens_as_bits_shrink() -> None:
    layer = conv("c", 16, 33, 1, 4)  # 16 inputs fill one pass at 8 bit; fewer bits leave lanes idle; 33 outputs take 2
    assert [cycles(layer, precision) for precision in ("w8a8", "w4a4", "w2a2")] == pytest.approx([32, 32, 32])


def test_depthwise_channels_take_a_pass_each() -> None:
    assert cycles(conv("d", 8, 8, 3, 4, groups=8), "w8a8") == pytest.approx(16 * 8)


def traffic(layer: LayerSpec, **array: object) -> float:
    """Bytes at 1 byte per second and 8 bit."""
    return toy(bandwidth=1e-9, **array).layer_cost(layer, Precision.parse("w8a8")).latency_ms * 1e-3


def test_what_fits_a_buffer_moves_once() -> None:
    assert traffic(conv("c", 30, 30, 1, 10)) == pytest.approx(900 + 3000 + 3000)  # weights fit
    assert traffic(linear("f", 100, 100)) == pytest.approx(10_000 + 100 + 100)  # inputs fit


def test_where_neither_fits_the_cheaper_one_is_read_again() -> None:
    weights, inputs, outputs = 1600, 40 * 100, 40 * 100
    assert traffic(conv("c", 40, 40, 1, 10)) == pytest.approx(min(weights + 2 * inputs, 2 * weights + inputs) + outputs)


def test_results_leave_at_the_width_of_the_accumulator() -> None:
    assert traffic(linear("f", 10, 10), output_bits=32) == pytest.approx(100 + 10 + 40)


def test_energy_is_busy_cycles_and_bytes_moved() -> None:
    cost = toy(bandwidth=1e-9).layer_cost(linear("f", 100, 100), Precision.parse("w8a8"))
    assert cost.energy_mj == pytest.approx((7 * 4 * 235.1 + 10_200 * 100) * 1e-9)


def test_energy_per_mac_of_a_full_bitfusion_array() -> None:
    """0.459, 0.115 and 0.029 pJ per MAC at 8, 4 and 2 bit, as derived from the published energy per cycle."""
    model, layer = build_cost_model(load_profile("bitfusion")), conv("c", 1024, 512, 1, 64)
    bytes_pj = 120 + 1.384
    for bits, expected in ((8, 0.459), (4, 0.115), (2, 0.0287)):
        cost = model.layer_cost(layer, Precision.parse(f"w{bits}a{bits}"))
        weights, inputs, outputs = 1024 * 512 * bits // 8, 1024 * 4096 * bits // 8, 512 * 4096 * 4
        tiles = (-(-weights // 32768), -(-inputs // 16384))
        moved = min(weights + inputs * tiles[0], weights * tiles[1] + inputs) + outputs
        core = cost.energy_mj * 1e9 - moved * bytes_pj
        assert core / layer.macs == pytest.approx(expected, rel=0.01)
