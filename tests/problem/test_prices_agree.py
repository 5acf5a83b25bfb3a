"""The problem's tables price every policy as the cost model does, where directions and formats differ by layer."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest
from networks import residual

sys.path.insert(0, str(Path(__file__).parents[1] / "hardware"))
from profiles import ROOFLINE, profile

from haq.hardware import build_cost_model
from haq.hardware.costs import cost_report
from haq.problem.from_network import problem_document
from haq.problem.problem import Problem
from haq.problem.settings import SpaceConfig
from haq.problem.space import build_space

DIRECTED = {
    "switch": [
        {"from": "int8", "to": "int4", "fixed_us": 3.0, "per_element_ns": 0.5},
        {"from": "int4", "to": "int8", "fixed_us": 11.0, "per_element_ns": 2.5},
        {"from": "*", "to": "*", "fixed_us": 1.0},
    ],
    "join": [
        {"from": "int8", "to": "int4", "fixed_us": 5.0, "per_element_ns": 0.25},
        {"from": "int4", "to": "int8", "fixed_us": 17.0, "per_element_ns": 4.0},
        {"from": "*", "to": "*", "fixed_us": 2.0},
    ],
    "formats": [{"pairs": ["w8a8", "w4a8", "w4a4", "w8a4", "wfp32afp32"]}],
}
NETWORK = residual()
SPACES = {
    "all alike": {"weights": ("int4", "int8"), "activations": ("int4", "int8")},
    "by layer": {
        "weights": ("int4", "int8"),
        "activations": ("int4", "int8"),
        "layers": {"stem": ("w8a8",), "block.*": ("w4a4", "wfp32afp32"), "left": ("w4a8",)},
    },
    "first and last": {"weights": ("int4",), "activations": ("int4", "int8"), "first_last": ("w8a8", "wfp32afp32")},
}


def model(**more: object):
    return build_cost_model(profile(**{**ROOFLINE, **DIRECTED, **more}))


@pytest.mark.parametrize("given", [None, "fp32"], ids=["input as wanted", "input in float"])
@pytest.mark.parametrize("name", SPACES)
def test_every_policy_costs_the_same_in_the_tables(name, given):
    cost_model = model(**({"input_format": given} if given else {}))
    space = build_space(NETWORK, SpaceConfig(**SPACES[name]), cost_model)
    document = problem_document(NETWORK, cost_model, space, budgets={"latency_ms": 1e9}, objective="latency_ms")
    problem, random = Problem.from_doc(document), Random(0)
    for _ in range(40):
        policy = space.draw(random)
        expected, found = cost_report(NETWORK, cost_model, policy).totals, problem.costs(policy)
        for metric, value in expected.items():
            assert found[metric] == pytest.approx(value, rel=1e-9), metric


def test_first_and_last_layer_have_their_own_choices():
    space = build_space(NETWORK, SpaceConfig(**SPACES["first and last"]), model())
    names = NETWORK.layer_names
    for name in names:
        expected = {"w8a8", "wfp32afp32"} if name in (names[0], names[-1]) else {"w4a4", "w4a8"}
        assert {str(choice) for choice in space.precisions[name]} == expected


def test_draws_use_every_choice():
    space = build_space(NETWORK, SpaceConfig(**SPACES["all alike"]), model())
    random = Random(0)
    drawn = [space.draw(random) for _ in range(60)]
    for name, choices in space.precisions.items():
        assert {policy[name] for policy in drawn} == set(choices)
