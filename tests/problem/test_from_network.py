from __future__ import annotations

import json
import random
from typing import Any

import pytest
from networks import residual

from haq.hardware import HardwareProfile, build_cost_model, load_profile, parse_profile
from haq.hardware.costs import cost_report
from haq.problem.from_network import problem_document
from haq.problem.problem import Problem
from haq.problem.settings import SpaceConfig
from haq.problem.space import SearchSpace, build_space
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.network import Join, Network, Step, Tensor
from haq.values.policy import Policy

NETWORK = residual()
SPACES = {
    "xeon_vnni_ort": SpaceConfig(weights=("int8", "fp32", "fp16"), activations=("int8", "fp32", "fp16")),
    "riscv_xpulpnn": SpaceConfig(weights=("int2", "int4", "int8"), activations=("int2", "int4", "int8")),
    "bismo_edge": SpaceConfig(weights=("int2", "int5", "int8"), activations=("int3", "int8")),
    "nvidia_t4": SpaceConfig(weights=("int4", "int8"), activations=("int4", "int8")),
    "hexagon_htp": SpaceConfig(weights=("int4", "int8"), activations=("int8",)),
}


def build(device: HardwareProfile, config: SpaceConfig, network: Network = NETWORK) -> tuple[Any, SearchSpace, dict]:
    model = build_cost_model(device)
    space = build_space(network, config, model)
    document = problem_document(network, model, space, budgets={"size_bytes": 1e9}, objective="size_bytes")
    return model, space, document


def with_input(name: str, input_format: str) -> HardwareProfile:
    document = load_profile(name).to_doc()
    return parse_profile({**document, "input_format": input_format})


def policies(space: SearchSpace, count: int = 40):
    """Random policies within the choices; ties do not matter to costs."""
    rng = random.Random(0)
    for _ in range(count):
        yield Policy({name: rng.choice(choices) for name, choices in space.precisions.items()})


def evaluate(document: dict[str, Any], policy: Policy) -> dict[str, float]:
    """The document's meaning, spelled out: what `haq solve` must compute."""
    index, activation = {}, {}
    totals: dict[str, float] = {}

    def add(metric: str, value: float) -> None:
        totals[metric] = totals.get(metric, 0.0) + value

    for layer in document["layers"]:
        choices = [Precision.from_doc(choice) for choice in layer["choices"]]
        index[layer["name"]] = choices.index(policy[layer["name"]])
        activation[layer["name"]] = policy[layer["name"]].activation.name
        for metric, value in layer["choices"][index[layer["name"]]]["costs"].items():
            add(metric, value)
    for edge in document["edges"]:
        add(edge["metric"], edge["costs"][index[edge["from"]]][index[edge["to"]]])
    for tensor in document["tensors"]:
        formats = tensor.get("activation_formats") or [f"int{bits}" for bits in tensor["activation_bits"]]
        row = 0 if tensor["from"] is None else formats.index(activation[tensor["from"]])
        for wanted in {activation[name] for name in tensor["to"]}:
            add(tensor["metric"], tensor["costs"][row][formats.index(wanted)])
    steps = [s["fixed"] + sum(sizes[index[name]] for name, sizes in s["live"].items()) for s in document["peak"]]
    return {**totals, "peak_activation_bytes": max(steps, default=0.0)}


@pytest.mark.parametrize("device", SPACES)
@pytest.mark.parametrize("given", [None, "int8"], ids=["input as wanted", "input in int8"])
def test_the_document_means_what_the_cost_report_says(device: str, given: str | None) -> None:
    profile = load_profile(device) if given is None else with_input(device, given)
    model, space, document = build(profile, SPACES[device])
    for policy in policies(space):
        assert evaluate(document, policy) == pytest.approx(cost_report(NETWORK, model, policy).totals)


@pytest.mark.parametrize("device", SPACES)
def test_the_problem_prices_policies_like_the_cost_report(device: str) -> None:
    model, space, document = build(load_profile(device), SPACES[device])
    problem = Problem.from_doc(json.loads(json.dumps(document)))
    for precision in space.precisions["depthwise"]:
        if all(precision in choices for choices in space.precisions.values()):
            policy = Policy.uniform(NETWORK.layer_names, precision)
            costs = problem.costs(policy)
            totals = cost_report(NETWORK, model, policy).totals
            assert {metric: costs[metric] for metric in totals} == pytest.approx(totals)


def test_the_problem_prices_mixed_policies_like_the_cost_report() -> None:
    model, space, document = build(with_input("bismo_edge", "int8"), SPACES["bismo_edge"])
    problem = Problem.from_doc(document)
    for policy in policies(space):
        totals = cost_report(NETWORK, model, policy).totals
        assert totals["latency_ms"] > 0
        costs = problem.costs(policy)
        assert {metric: costs[metric] for metric in totals} == pytest.approx(totals)


def branches() -> Network:
    """The input joined from both sides, read twice and added to itself."""
    layers = tuple(NETWORK[name] for name in ("block.conv1", "block.conv2", "left"))
    tensors = (Tensor("x", None, ("block.conv1", "left"), 1024), Tensor("t", "block.conv1", ("block.conv2",), 1024))
    joins = (
        Join("skip", "add", "block.conv2", ((None, 1024), ("block.conv1", 1024)), 1024),
        Join("late", "add", None, (("left", 2048),), 2048),
        Join("twice", "add", "left", (("left", 2048),), 2048),
    )
    steps = (Step("a", ((None, 1024), ("block.conv1", 1024))), Step("b", ((None, 1024), ("left", 2048), ("left", 10))))
    return Network(layers, tensors, joins, steps)


@pytest.mark.parametrize("given", [None, "int3", "int8"])
def test_joins_and_steps_with_network_inputs(given: str | None) -> None:
    profile = load_profile("bismo_edge") if given is None else with_input("bismo_edge", given)
    network = branches()
    model, space, document = build(profile, SPACES["bismo_edge"], network)
    Problem.from_doc(document)
    for policy in policies(space):
        assert evaluate(document, policy) == pytest.approx(cost_report(network, model, policy).totals)


def test_matrices_of_zeros_are_left_out() -> None:
    _, _, document = build(load_profile("cortex_m7"), SPACES["riscv_xpulpnn"])
    assert (document["edges"], document["tensors"]) == ([], [])
    _, _, document = build(load_profile("xeon_vnni_ort"), SPACES["xeon_vnni_ort"])
    assert {row["metric"] for row in document["tensors"]} == {"latency_ms"}
    assert {(edge["from"], edge["to"]) for edge in document["edges"]} == {("stem", "block.conv2"), ("left", "right")}


def test_formats_that_are_not_plain_integers_are_named() -> None:
    _, _, document = build(load_profile("xeon_vnni_ort"), SPACES["xeon_vnni_ort"])
    assert document["tensors"][0]["activation_formats"] == ["int8", "fp16", "fp32"]
    _, _, document = build(load_profile("bismo_edge"), SPACES["bismo_edge"])
    assert document["tensors"][0]["activation_bits"] == [3, 8]


def test_sensitivities_ties_budgets_and_interactions_are_passed_on() -> None:
    model = build_cost_model(load_profile("nvidia_t4"))
    config = SpaceConfig(weights=("int4", "int8"), activations=("int4", "int8"), ties=(("left", "right"),))
    space = build_space(NETWORK, config, model)
    losses = {name: {str(p): 1.0 / p.weight.bits for p in row} for name, row in space.precisions.items()}
    interactions = [{"between": ["left", "block.conv1"], "costs": [[0.0, -0.5], [0.1, 0.2]]}]
    document = problem_document(
        NETWORK,
        model,
        space,
        sensitivity=losses,
        budgets={"latency_ms": 1.0, "average_weight_bits": 6.0},
        objective="sensitivity",
        interactions=interactions,
    )
    assert document["layers"][1]["choices"][0]["sensitivity"] == 0.25
    assert document["ties"] == [["left", "right"]]
    assert document["activation_ties"] == [["stem", "block.conv2"], ["left", "right"]]
    assert document["budgets"] == {"latency_ms": 1.0, "average_weight_bits": 6.0}
    assert document["interactions"] == interactions


def test_what_the_tables_cannot_hold_is_refused() -> None:
    model = build_cost_model(load_profile("hexagon_htp"))
    space = build_space(NETWORK, SPACES["hexagon_htp"], model)

    def document(**changes: Any) -> None:
        problem_document(NETWORK, model, space, **{"budgets": {}, "objective": "bops", **changes})

    document()
    with pytest.raises(InputError, match="latency_ms: hardware profile 'hexagon_htp' states no figures"):
        document(budgets={"latency_ms": 1.0})
    with pytest.raises(InputError, match="energy_mj: hardware profile 'hexagon_htp' states no figures"):
        document(objective="energy_mj")
    with pytest.raises(InputError, match="a sensitivity table is needed"):
        document(objective="sensitivity")
    with pytest.raises(InputError, match="no entry for layer 'stem' in w4a8"):
        document(sensitivity={})
