from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from networks import conv, residual

from haq.hardware import build_cost_model, load_profile
from haq.problem.settings import SpaceConfig
from haq.problem.space import SearchSpace, build_space
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.network import LayerSpec, Network
from haq.values.policy import Policy

NETWORK = residual()


class Device:
    """A device that supports what it is told to."""

    name = "toy"

    def __init__(
        self, supported: Callable[[LayerSpec], str], *, shared_input: bool = False, join_inputs: bool = False
    ) -> None:
        self._supported = supported
        self.shared_input = shared_input
        self.join_inputs = join_inputs

    def supported(self, layer: LayerSpec) -> tuple[Precision, ...]:
        return precisions(self._supported(layer))


def precisions(text: str) -> tuple[Precision, ...]:
    return tuple(sorted(Precision.parse(part) for part in text.split()))


def shown(choices: tuple[Precision, ...]) -> str:
    return " ".join(str(choice) for choice in choices)


ANY = Device(lambda layer: " ".join(f"w{w}a{a}" for w in (2, 4, 8) for a in (4, 8)))


def space(device: Device = ANY, **config: Any) -> SearchSpace:
    return build_space(
        NETWORK, SpaceConfig(**{"weights": ("int2", "int4", "int8"), "activations": ("int8",), **config}), device
    )


def test_the_product_of_the_formats_asked_for() -> None:
    choices = space(weights=("int8", "int2"), activations=("int8", "int4")).precisions
    assert list(choices) == list(NETWORK.layer_names)
    assert {shown(row) for row in choices.values()} == {"w2a4 w2a8 w8a4 w8a8"}


def test_what_the_device_does_not_run_is_dropped_per_layer() -> None:
    device = Device(lambda layer: "w8a8 wfp32afp32 w4afp32" if layer.kind == "linear" else "w8a8 wfp32afp32")
    choices = space(device, weights=("int4", "int8", "fp32"), activations=("int8", "fp32")).precisions
    assert shown(choices["fc"]) == "w4afp32 w8a8 wfp32afp32"
    assert shown(choices["stem"]) == "w8a8 wfp32afp32"


def test_first_and_last_layer_patterns_and_names() -> None:
    layers = {"*": ("w4a8",), "block.*": ("w2a8", "w4a8"), "block.conv2": ("w8a8",), "fc": ("w2a4",)}
    choices = space(first_last=("w8a8",), layers=layers).precisions
    assert {name: shown(row) for name, row in choices.items()} == {
        "stem": "w8a8",
        "block.conv1": "w2a8 w4a8",
        "block.conv2": "w8a8",
        "left": "w4a8",
        "right": "w4a8",
        "depthwise": "w4a8",
        "fc": "w2a4",
    }


def test_tied_layers_keep_what_all_of_them_can_take() -> None:
    result = space(ties=(("left", "right"), ("right", "stem")), layers={"left": ("w4a8", "w8a8", "w8a4")})
    assert result.ties == (("stem", "left", "right"),)
    assert {shown(result.precisions[name]) for name in result.ties[0]} == {"w4a8 w8a8"}


def test_the_device_ties_the_activations_of_shared_reads_and_joined_writes() -> None:
    device = Device(ANY._supported, shared_input=True)
    assert space(device, activations=("int4", "int8")).activation_ties == (("left", "right"),)
    device = Device(ANY._supported, join_inputs=True)
    wanted = (("stem", "block.conv2"), ("left", "right"))
    assert space(device, activations=("int4", "int8")).activation_ties == wanted


def test_activation_ties_without_a_choice_are_dropped() -> None:
    assert space(Device(ANY._supported, join_inputs=True), activations=("int8",)).activation_ties == ()


def test_ties_narrow_each_other_until_nothing_changes() -> None:
    device = Device(ANY._supported, join_inputs=True)
    layers = {"stem": ("w8a8",), "block.conv2": ("w4a4", "w4a8"), "left": ("w4a8", "w4a4")}
    result = space(device, activations=("int4", "int8"), layers=layers, ties=(("block.conv2", "left"),))
    assert shown(result.precisions["block.conv2"]) == "w4a8"
    assert shown(result.precisions["left"]) == "w4a8"
    assert {precision.activation.name for precision in result.precisions["right"]} == {"int8"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(
            {"weights": ("int3",)}, "space.weights: toy runs no layer of this model with int3 weights", id="w"
        ),
        pytest.param(
            {"activations": ("fp16",)}, "space.activations: .*with fp16 activations; it supports w2a4", id="a"
        ),
        pytest.param({"first_last": ("w3a8",)}, "space.first_last: .*in w3a8; it supports w2a4", id="first_last"),
        pytest.param({"layers": {"fc": ("w8a2",)}}, "space.layers.fc: .*in w8a2; it supports", id="override"),
        pytest.param({"layers": {"block.conv3": ("w8a8",)}}, "'block.conv3' matches no layer; did you mean", id="name"),
        pytest.param({"layers": {"zzz*": ("w8a8",)}}, r"'zzz\*' matches no layer; the layers are stem, ", id="pattern"),
        pytest.param({"ties": (("left", "rihgt"),)}, "unknown layer 'rihgt'; did you mean right", id="tie"),
        pytest.param({"ties": (("left", "left"),)}, "ties nothing; name two or more layers", id="lone tie"),
        pytest.param(
            {"ties": (("left", "right"),), "layers": {"left": ("w2a8",), "right": ("w8a8",)}},
            "layers left, right must share their precision .* no choice is common: left: w2a8; right: w8a8",
            id="tie without common choice",
        ),
    ],
)
def test_bad_spaces_are_refused_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        space(**config)
    assert "\n" not in str(caught.value)


def test_a_layer_without_a_choice_is_named_with_what_it_could_take() -> None:
    device = Device(lambda layer: "w8a8" if layer.is_depthwise else "w4a8 w8a8")
    message = (
        "layer 'depthwise': no choice is left: space.weights x activations asks for w4a8, toy supports w8a8 for it"
    )
    with pytest.raises(InputError, match=message):
        space(device, weights=("int4",))


def test_activation_ties_without_a_common_format_are_refused() -> None:
    device = Device(ANY._supported, join_inputs=True)
    with pytest.raises(InputError, match=r"left, right must share their activation format .*: left: w8a4; right: w8a8"):
        space(device, layers={"left": ("w8a4",), "right": ("w8a8",)})


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(InputError, match="the model has no layer to quantize"):
        build_space(Network((), ()), SpaceConfig(), ANY)


def test_four_bit_on_the_eight_bit_npu_is_refused_with_what_it_supports() -> None:
    model = build_cost_model(load_profile("ethos_u55"))
    message = "space.weights: ethos_u55 runs no layer of this model with int4 weights; it supports w8a8; remove int4"
    with pytest.raises(InputError, match=message):
        build_space(NETWORK, SpaceConfig(weights=("int4", "int8")), model)
    choices = build_space(NETWORK, SpaceConfig(weights=("int8",)), model).precisions
    assert {shown(row) for row in choices.values()} == {"w8a8"}


def test_formats_lists_weights_and_activations_of_each_layer() -> None:
    device = Device(lambda layer: "w4a8 w8a8 wfp16afp16")
    network = Network((conv("c", 8, 8, 3, 4),), ())
    config = SpaceConfig(weights=("int4", "fp16"), activations=("int8", "fp16"))
    weights, activations = build_space(network, config, device).formats()["c"]
    assert [fmt.name for fmt in weights] == ["int4", "fp16"]
    assert [fmt.name for fmt in activations] == ["int8", "fp16"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"left": "w4a4"}, "layer 'left': w4a4 is not in the space; choices: w2a4, w2a8", id="no choice"),
        pytest.param({"stem": "w8a8", "fc": "w2a8"}, "stem, fc must have the same precision", id="tie"),
        pytest.param({"right": "w2a4"}, "left, right must have the same activation format, got int4, int8", id="act"),
        pytest.param({"other": "w2a8"}, "unknown other", id="layer"),
    ],
)
def test_a_policy_outside_the_space_is_refused(changes: dict[str, str], message: str) -> None:
    device = Device(ANY._supported, shared_input=True)
    config = {"weights": ("int2", "int8"), "activations": ("int4", "int8"), "ties": (("stem", "fc"),)}
    result = space(device, **config)
    policy = Policy.uniform(NETWORK.layer_names, Precision.parse("w2a8"))
    result.check(policy)
    with pytest.raises(InputError, match=message):
        result.check(Policy({**policy, **{name: Precision.parse(text) for name, text in changes.items()}}))


def test_draws_keep_to_the_space_and_reach_all_of_it() -> None:
    device = Device(ANY._supported, shared_input=True, join_inputs=True)
    result = space(device, activations=("int4", "int8"), ties=(("block.conv2", "left"),))
    random = Random(0)
    drawn = [result.draw(random) for _ in range(200)]
    for policy in drawn:
        result.check(policy)
    for name, choices in result.precisions.items():
        assert {policy[name] for policy in drawn} == set(choices)
