from __future__ import annotations

import json

import pytest
from networks import residual

from haq.hardware import HardwareProfile, build_cost_model, load_profile, parse_profile
from haq.hardware.costs import cost_report
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy

NETWORK = residual()
XEON = load_profile("xeon_vnni_ort")
FP32, W8A8 = Precision.parse("wfp32afp32"), Precision.parse("w8a8")


def report(profile: HardwareProfile = XEON, **changes: Precision):
    names = {name.replace(".", "_"): name for name in NETWORK.layer_names}
    policy = dict.fromkeys(NETWORK.layer_names, FP32) | {names[key]: value for key, value in changes.items()}
    return cost_report(NETWORK, build_cost_model(profile), Policy(policy))


def with_keys(profile: HardwareProfile, **changes: object) -> HardwareProfile:
    document = profile.to_doc()
    return parse_profile({**document, **changes})


def test_agreeing_formats_switch_nothing() -> None:
    result = report()
    assert (result.switches, result.joins) == ((), ())
    assert result.totals["latency_ms"] == pytest.approx(sum(row.cost.latency_ms for row in result.layers))


def test_a_tensor_is_converted_once_however_many_layers_read_it() -> None:
    (switch,) = (row for row in report(left=W8A8, right=W8A8).switches if row.tensor == "add")
    assert switch.consumers == ("left", "right")
    assert switch.cost.latency_ms == pytest.approx(1024 * 0.78e-6)


def test_a_tensor_is_converted_once_per_distinct_format() -> None:
    result = report(left=W8A8, right=Precision.parse("wfp16afp16"))
    wanted = {(row.wanted.name, row.consumers) for row in result.switches if row.tensor == "add"}
    assert wanted == {("int8", ("left",)), ("fp16", ("right",))}


def test_an_add_of_operands_that_disagree_has_a_cost_of_its_own() -> None:
    (join,) = report(stem=W8A8).joins
    assert (join.join.name, join.other, join.written.name, join.wanted.name) == ("add", "stem", "int8", "fp32")
    assert join.cost.latency_ms == pytest.approx(1024 * 1.44e-6)


def test_totals_are_the_sum_of_the_parts() -> None:
    result = report(block_conv1=W8A8, left=W8A8)
    parts = [*result.layers, *result.switches, *result.joins]
    assert (len(result.switches), len(result.joins)) == (3, 1)  # relu, relu_1, add for left; left joins right
    for metric in ("latency_ms", "size_bytes", "bops"):
        assert result.totals[metric] == pytest.approx(sum(getattr(row.cost, metric) for row in parts))


def test_peak_memory_is_the_largest_sum_of_live_tensors() -> None:
    result = report(stem=W8A8, block_conv1=W8A8)
    assert result.peak is not None
    assert result.peak.step == "right"
    assert result.peak.live == (("block.conv2", 4 * 1024), ("left", 4 * 2048), ("right", 4 * 2048))
    result = report(left=W8A8, right=W8A8)
    assert result.totals["peak_activation_bytes"] == 4 * 3 * 1024  # at `block.conv2`, all of it fp32
    assert report().totals["peak_activation_bytes"] == 4 * 5120  # at `right`: 1,024 + 2 x 2,048 elements of fp32


def test_a_network_input_is_delivered_as_wanted_unless_the_profile_says_otherwise() -> None:
    assert not [row for row in report(stem=W8A8).switches if row.tensor == "x"]
    (switch,) = (row for row in report(with_keys(XEON, input_format="fp32"), stem=W8A8).switches if row.tensor == "x")
    assert (switch.producer, switch.written.name, switch.consumers) == (None, "fp32", ("stem",))
    assert switch.cost.latency_ms == pytest.approx(192 * 0.78e-6)


def test_average_weight_bits_weigh_by_parameters() -> None:
    params = {layer.name: layer.params for layer in NETWORK.layers}
    expected = 32 - 24 * params["left"] / sum(params.values())
    assert report(left=W8A8).totals["average_weight_bits"] == pytest.approx(expected)


def test_the_document_is_plain_json() -> None:
    document = report(left=W8A8).to_doc()
    assert json.loads(json.dumps(document)) == document
    assert document["layers"][0]["precision"] == "wfp32afp32"
    assert document["switches"][0]["from"] == "block.conv2"
    assert set(document["totals"]) == {
        "latency_ms",
        "size_bytes",
        "peak_activation_bytes",
        "bops",
        "average_weight_bits",
    }


def test_a_policy_for_another_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"the policy is for another model: missing block\.conv1"):
        cost_report(NETWORK, build_cost_model(XEON), Policy({"stem": FP32}))
