from __future__ import annotations

import json
import math
from itertools import product

import pytest
from networks import conv, residual

from haq.hardware import (
    CostModel,
    HardwareProfile,
    build_cost_model,
    list_profiles,
    load_profile,
    parse_profile,
    require_metrics,
)
from haq.hardware.costs import cost_report
from haq.hardware.sections import operation
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.network import Tensor
from haq.values.policy import Policy
from haq.values.trial import METRICS

PROFILES = {profile.name: profile for profile in list_profiles()}
SHIPPED = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
LAYER = conv("c", 16, 16, 3, 8)  # 147,456 MACs, 2,304 weights, 1,024 elements in and out


def test_the_devices_of_the_project_ship() -> None:
    wanted = {"xeon_vnni_ort", "nvidia_t4", "nvidia_a100", "cortex_m7", "riscv_xpulpnn", "bitfusion", "bismo_cloud"}
    assert wanted | {"ethos_u55", "edge_tpu", "hexagon_htp", "bismo_edge", "gap8_pulpnn"} <= set(PROFILES)


@SHIPPED
def test_provenance_says_where_the_figures_come_from(profile: HardwareProfile) -> None:
    provenance = profile.provenance
    assert len(provenance.source) > 20
    assert provenance.date.year >= 2024
    assert all("from memory" not in text for text in (provenance.measured, provenance.published, provenance.derived))


@SHIPPED
def test_a_profile_reads_back_from_its_document(profile: HardwareProfile) -> None:
    document = json.loads(json.dumps(profile.to_doc()))
    assert parse_profile(document).to_doc() == document


def every_cost(model: CostModel):
    network = residual()
    for layer in network.layers:
        for precision in model.supported(layer):
            yield layer.name, precision, model.layer_cost(layer, precision)


@SHIPPED
def test_every_layer_has_a_choice_and_every_cost_is_finite_and_not_negative(profile: HardwareProfile) -> None:
    model = build_cost_model(profile)
    assert all(model.supported(layer) for layer in residual().layers)
    for layer, precision, cost in every_cost(model):
        values = cost.to_doc(METRICS)
        assert all(math.isfinite(value) and value >= 0 for value in values.values()), (layer, precision)
        positive = model.metrics - {"peak_activation_bytes"}
        assert all(values[metric] > 0 for metric in positive), (layer, precision)
        assert all(values[metric] == 0 for metric in set(METRICS) - model.metrics)


@SHIPPED
def test_switches_and_joins_are_finite_and_free_only_between_equal_formats(profile: HardwareProfile) -> None:
    model, tensor = build_cost_model(profile), Tensor("t", "a", ("b",), 1000)
    formats = sorted({p.activation for p in profile.all_precisions})
    for written, wanted in product(formats, formats):
        for cost in (model.switch_cost(tensor, written, wanted), model.join_cost(1000, wanted, written)):
            assert all(math.isfinite(value) and value >= 0 for value in cost.to_doc().values())
            assert written != wanted or not any(cost.to_doc().values())


@SHIPPED
def test_what_the_device_does_not_run_is_refused(profile: HardwareProfile) -> None:
    model = build_cost_model(profile)
    for weight, activation in product(("int1", "int4", "int8", "fp32", "bf16"), repeat=2):
        precision = Precision(Format.parse(weight), Format.parse(activation))
        if precision not in model.supported(LAYER):
            with pytest.raises(InputError, match=f"layer 'c': {profile.name} does not run conv layers in {precision}"):
                model.layer_cost(LAYER, precision)


@SHIPPED
def test_fewer_bits_take_less_memory_and_never_more_energy_where_they_are_accelerated(profile: HardwareProfile) -> None:
    model = build_cost_model(profile)
    layer = conv("c", 256, 256, 3, 16)  # a multiple of every alignment
    fast = profile.precisions(operation(layer), accelerated=True)
    for less, more in product(fast, fast):
        if less.weight.bits <= more.weight.bits and less.activation.bits <= more.activation.bits:
            one, other = model.layer_cost(layer, less), model.layer_cost(layer, more)
            assert one.size_bytes <= other.size_bytes
            assert one.energy_mj <= other.energy_mj, (less, more)


# Written down by hand from each profile's figures: MACs / rate + overhead in ms, for LAYER.
GOLDEN = {
    "xeon_vnni_ort": {"w8a8": 147456 / 179.0e6 + 12.5e-3, "wfp32afp32": 147456 / 47.9e6},
    "nvidia_t4": {"w8a8": 8 * 147456 / (65e9 * 0.0416) + 10.9e-3, "w4a4": 2 * 8 * 147456 / (130e9 * 0.0356) + 10.9e-3},
    "nvidia_a100": {"w8a8": (2304 + 8 * 2048) / 1555e6, "w4a4": (1152 + 4 * 2048) / 1555e6},
    "nvidia_h100": {"wfp16afp16": 2 * (2304 + 8 * 2048) / 2000e6},
    "cortex_m7": {"w8a2": 147456 / (0.80 * 480e3), "w4a8": 147456 / (0.73 * 480e3), "w2a8": 147456 / (0.76 * 480e3)},
    "riscv_xpulpnn": {
        "w8a8": 147456 / (15.5 * 400e3),
        "w2a2": 147456 / (54.8 * 400e3),
        "w4a8": 147456 / (6.02 * 400e3),
    },
    "gap8_pulpnn": {"w8a8": 147456 / (15.5 * 175e3), "w4a4": 147456 / (6.02 * 175e3)},
    "bitfusion": {"w8a8": 64 * 9 / 500e3, "w2a2": (576 + 256 + 4096) / 12e6},
    "bismo_cloud": {"w8a8": 8 * 1024 / 200e3},
    "bismo_edge": {"w8a8": 8 * 64 * 4 / 200e3, "w2a8": 8 * 64 * 4 / 200e3},
    "ethos_u55": {"w8a8": 2304 / 0.5e6},
    "edge_tpu": {"w8a8": 147456 * 4 * 4 / 2000e6},
}


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [pytest.param(d, p, ms, id=f"{d} {p}") for d, rows in GOLDEN.items() for p, ms in rows.items()],
)
def test_latency_by_hand(device: str, precision: str, expected: float) -> None:
    cost = build_cost_model(load_profile(device)).layer_cost(LAYER, Precision.parse(precision))
    assert cost.latency_ms == pytest.approx(expected, rel=1e-6)


def test_without_sub_byte_arithmetic_low_bits_save_memory_and_cost_time() -> None:
    model = build_cost_model(load_profile("cortex_m7"))
    eight, four = (model.layer_cost(conv("c", 32, 32, 3, 8), Precision.parse(text)) for text in ("w8a8", "w4a8"))
    assert four.size_bytes < 0.55 * eight.size_bytes
    assert four.latency_ms > 1.05 * eight.latency_ms


def test_native_sub_byte_arithmetic_is_faster_and_mixed_widths_are_not() -> None:
    model = build_cost_model(load_profile("riscv_xpulpnn"))
    names = ("w2a2", "w4a4", "w8a8", "w4a8")
    times = [model.layer_cost(conv("c", 32, 32, 3, 8), Precision.parse(name)).latency_ms for name in names]
    assert times == sorted(times)
    assert not model.accelerated(LAYER, Precision.parse("w4a8"))


def test_switches_eat_what_an_isolated_int8_depthwise_layer_gains_on_the_server_cpu() -> None:
    """Measured on EfficientNet-Lite0: the switches around its first depthwise layer cost more than the layer."""
    model, layer = build_cost_model(load_profile("xeon_vnni_ort")), conv("c", 96, 96, 3, 112, groups=96)
    fp32, int8 = Format.parse("fp32"), Format.parse("int8")
    there = model.switch_cost(Tensor("t", "b", ("c",), layer.input_elements), fp32, int8).latency_ms
    back = model.switch_cost(Tensor("u", "c", ("d",), layer.output_elements), int8, fp32).latency_ms
    fast, slow = (model.layer_cost(layer, Precision.parse(text)).latency_ms for text in ("w8a8", "wfp32afp32"))
    assert fast < slow < fast + there + back
    assert there == pytest.approx(1_204_224 * 0.78e-6)


def test_a_device_without_rates_prices_sizes_and_refuses_times() -> None:
    model = build_cost_model(load_profile("hexagon_htp"))
    report = cost_report(residual(), model, Policy.uniform(residual().layer_names, Precision.parse("w4a8")))
    assert set(report.totals) == {"size_bytes", "peak_activation_bytes", "bops", "average_weight_bits"}
    with pytest.raises(InputError, match="latency_ms: hardware profile 'hexagon_htp' states no figures"):
        require_metrics(model, ["size_bytes", "latency_ms"])
