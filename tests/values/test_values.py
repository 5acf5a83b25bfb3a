"""The plain values: what they print, hash and refuse."""

import json

import pytest

from haq.values.formats import Format, Precision
from haq.values.network import Join, LayerSpec, Network, Step, Tensor
from haq.values.policy import Policy
from haq.values.trial import Cost, Measurement, Trial


@pytest.mark.parametrize("text", ["w4a8", "wternarya8", "wbinaryafp16", "wbf16abf16", "wfp32afp32", "w16a2"])
def test_a_precision_prints_as_it_is_read(text):
    assert str(Precision.parse(text)) == text


@pytest.mark.parametrize("text", ["w4", "a8", "w4a", "w0a8", "w33a8", "w4a8x", "wint4a8", ""])
def test_what_is_no_precision_is_refused(text):
    with pytest.raises(ValueError, match=r"precision|unknown number format"):
        Precision.parse(text)


@pytest.mark.parametrize("name", ["int0", "int33", "int04", "fp8", "Int4", ""])
def test_an_unknown_format_names_the_known_ones(name):
    with pytest.raises(ValueError, match="known: int1 to int32, ternary, binary, fp16"):
        Format.parse(name)


@pytest.mark.parametrize("text", ["w4a8", "wternarya8", "wbinaryafp16", "w32afp32"])
def test_a_precision_survives_json(text):
    precision = Precision.parse(text)
    assert Precision.from_doc(json.loads(json.dumps(precision.to_doc()))) == precision


@pytest.mark.parametrize(
    ("doc", "message"),
    [
        ({"weight_bits": 4}, "activation_bits must be a whole number"),
        ({"weight_bits": "4", "activation_bits": 8}, "weight_bits must be a whole number"),
        ({"weight_bits": True, "activation_bits": 8}, "weight_bits must be a whole number"),
        ({"weight_bits": 4, "activation_bits": 8, "weight_format": "ternary"}, "'ternary' has 2 bits"),
    ],
)
def test_a_damaged_precision_says_what_is_wrong(doc, message):
    with pytest.raises(ValueError, match=message):
        Precision.from_doc(doc)


def test_a_policy_is_a_value():
    one = Policy({"a": Precision.parse("w4a8"), "b": Precision.parse("w8a8")})
    two = Policy({"b": Precision.parse("w8a8"), "a": Precision.parse("w4a8")})
    other = Policy.uniform(["a", "b"], Precision.parse("w8a8"))
    assert one == two
    assert one.key == two.key == Policy.from_doc(json.loads(json.dumps(one.to_doc()))).key
    assert other.key != one.key
    assert len({one, two, other}) == 2


def test_the_key_of_a_policy_never_changes():
    """Journals on users' disks hold it: printf '{"conv1": "w4a8"}' | sha256sum."""
    assert Policy.uniform(["conv1"], Precision.parse("w4a8")).key == "118d468842a5eaa2"


def test_a_policy_for_another_model_lists_both_sides():
    policy = Policy.uniform(["a", "x"], Precision.parse("w4a8"))
    with pytest.raises(ValueError, match="missing b, c; unknown x"):
        policy.check_layers(["a", "b", "c"])


def test_costs_add():
    assert Cost(latency_ms=1, bops=2) + Cost(latency_ms=0.5, size_bytes=3) == Cost(1.5, 0, 3, 0, 2)


@pytest.mark.parametrize(
    "measurement", [Measurement(91.5, "ptq", 1.25, {"loss": 0.3}), Measurement(float("nan"), "bn", error="loss is NaN")]
)
def test_a_trial_survives_json(measurement):
    trial = Trial(3, "ilp", Policy.uniform(["a"], Precision.parse("w4a8")), {"latency_ms": 1.0}, measurement)
    again = Trial.from_doc(json.loads(json.dumps(trial.to_doc())))
    assert again.to_doc() == trial.to_doc()
    assert again.measurement.ok == measurement.ok


def test_a_network_survives_json_and_knows_its_groups():
    layer = LayerSpec("a", "conv2d", (8, 3, 3, 3), 100, 216, 8, (3, 4, 4), (8, 4, 4), 48, 128, 1, (1, 1))
    network = Network(
        (layer,),
        (Tensor("t", "a", ("b", "c"), 128), Tensor("u", None, ("a",), 48)),
        (Join("add", "add", "c", (("a", 128), (None, 128)), 128),),
        (Step("a", ((None, 48), ("a", 128))),),
    )
    assert Network.from_doc(json.loads(json.dumps(network.to_doc()))) == network
    assert network.shared_reads() == (("b", "c"),)
    assert network.joined_writes() == (("c", "a"),)


def test_channels_of_a_grouped_transposed_convolution():
    layer = LayerSpec("t", "conv_transpose2d", (8, 5, 2, 2), 0, 160, 0, (8, 4, 4), (10, 8, 8), 128, 640, 2, (2, 2))
    assert (layer.in_channels, layer.out_channels, layer.output_positions) == (8, 10, 64)
