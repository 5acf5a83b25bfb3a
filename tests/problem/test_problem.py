from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haq.problem.problem import TOLERANCE, Problem, load_problem
from haq.testing import TOYS, chain_document, layer
from haq.values.errors import InfeasibleError, InputError
from haq.values.formats import Precision
from haq.values.policy import Policy

Doc = dict[str, Any]
W8A4, W8A8 = Precision.parse("w8a4"), Precision.parse("w8a8")


def document() -> Doc:
    """Two layers of two choices and one of everything."""
    both = {"w8a4": (5.0, 1.0), "w8a8": (1.0, 2.0)}
    return {
        "schema_version": 1,
        "layers": [layer("a", both), layer("b", both), layer("c", both)],
        "ties": [["b", "c"]],
        "activation_ties": [],
        "edges": [{"from": "a", "to": "b", "metric": "latency_ms", "costs": [[0, 0.5], [0.25, 0]]}],
        "tensors": [
            {"from": "a", "to": ["b", "c"], "metric": "energy_mj", "activation_bits": [4, 8], "costs": [[0, 3], [1, 0]]}
        ],
        "interactions": [{"between": ["a", "b"], "costs": [[-0.5, 0], [0, 0]]}],
        "peak": [
            {"step": "a", "fixed": 10.0, "live": {"a": [4, 8], "b": [1, 2]}},
            {"step": "b", "live": {"b": [9, 20]}},
        ],
        "offsets": {"latency_ms": 0.125},
        "budgets": {"latency_ms": 100.0},
        "objective": "sensitivity",
    }


def policy(a: Precision, b: Precision, c: Precision) -> Policy:
    return Policy({"a": a, "b": b, "c": c})


def test_every_metric_is_priced() -> None:
    problem = Problem.from_doc(document())
    assert problem.costs(policy(W8A4, W8A8, W8A8)) == {
        "latency_ms": 1 + 2 + 2 + 0.5 + 0.125,
        "energy_mj": 3.0,
        "peak_activation_bytes": 20.0,
        "sensitivity": 5 + 1 + 1,
    }
    assert problem.costs(policy(W8A4, W8A4, W8A4))["sensitivity"] == 15 - 0.5
    assert problem.metrics == ("latency_ms", "energy_mj", "peak_activation_bytes", "sensitivity")


def test_a_breakdown_adds_up() -> None:
    problem, chosen = Problem.from_doc(document()), policy(W8A8, W8A4, W8A4)
    costs = problem.costs(chosen)
    for metric in ("latency_ms", "energy_mj", "sensitivity"):
        assert sum(part.value for part in problem.breakdown(chosen, metric)) == pytest.approx(costs[metric])
    steps = problem.breakdown(chosen, "peak_activation_bytes")
    assert [(part.kind, part.name, part.value) for part in steps] == [("step", "a", 10 + 8 + 1), ("step", "b", 9)]
    switches = [part for part in problem.breakdown(chosen, "energy_mj") if part.kind == "tensor"]
    assert [(part.name, part.value) for part in switches] == [("a -> b, c", 1.0)]


def test_a_document_reads_back() -> None:
    problem = Problem.from_doc(document())
    again = Problem.from_doc(json.loads(json.dumps(problem.to_doc())))
    assert again.signature == problem.signature
    assert again.to_doc() == problem.to_doc()
    assert Problem.from_doc({**document(), "objective": "latency_ms"}).signature != problem.signature


def test_a_tensor_from_the_input_and_formats_by_name_read_back() -> None:
    doc = document()
    doc["layers"][0]["choices"][1] = {
        **doc["layers"][0]["choices"][1],
        "activation_format": "fp16",
        "activation_bits": 16,
    }
    formats = ["int4", "int8", "fp16"]
    doc["tensors"] = [
        {"from": None, "to": ["a", "b"], "metric": "latency_ms", "activation_formats": formats, "costs": [[1, 2, 4]]}
    ]
    problem = Problem.from_doc(json.loads(json.dumps(Problem.from_doc(doc).to_doc())))
    chosen = policy(Precision.parse("w8afp16"), W8A8, W8A8)
    assert problem.costs(chosen)["latency_ms"] == 2 + 2 + 2 + 0 + 0.125 + (4 + 2)


def test_policies_and_assignments_are_the_same_thing() -> None:
    problem = Problem.from_doc(document())
    assert problem.groups == (("a",), ("b", "c"))
    chosen = policy(W8A8, W8A4, W8A4)
    assert problem.assignment(chosen).tolist() == [1, 0]
    assert problem.policy([1, 0]) == chosen


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Policy({"a": W8A8, "b": W8A8}), "the policy is for another model: missing c"),
        (policy(W8A8, W8A8, Precision.parse("w2a8")), "layer c: w2a8 is not among its choices w8a4, w8a8"),
        (policy(W8A8, W8A8, W8A4), "tied layers take the same choice, but the policy gives b w8a8, c w8a4"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(wrong: Policy, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Problem.from_doc(document()).costs(wrong)


def test_activation_ties_hold_across_layers_of_other_choices() -> None:
    doc = {**document(), "ties": [], "activation_ties": [["a", "b"], ["b", "c"]]}
    problem = Problem.from_doc(doc)
    with pytest.raises(ValueError, match=r"share one activation format, but the policy gives a int8, b int8, c int4"):
        problem.costs(policy(W8A8, W8A8, W8A4))
    wish = policy(W8A8, W8A4, W8A8)
    assert len({chosen.activation for chosen in problem.nearest(wish).values()}) == 1


def test_the_tolerance_is_that_of_rounding() -> None:
    problem = TOYS["knapsack"].problem
    spent = problem.policy([2, 1, 1])
    assert problem.violation(spent) == {}
    assert problem.with_budgets({"latency_ms": 8.0 * (1 - 0.5 * TOLERANCE)}).violation(spent) == {}
    over = problem.with_budgets({"latency_ms": 8.0 * (1 - 2 * TOLERANCE)}).violation(spent)
    assert over == {"latency_ms": pytest.approx(16 * TOLERANCE, rel=1e-2)}


def test_other_budgets_leave_the_problem_alone() -> None:
    problem = TOYS["knapsack"].problem
    other = problem.with_budgets({"sensitivity": 5.0}, objective="latency_ms")
    assert (other.budgets, other.objective) == ({"sensitivity": 5.0}, "latency_ms")
    assert (problem.budgets, problem.objective) == ({"latency_ms": 8.0}, "sensitivity")
    with pytest.raises(InputError, match="unknown metric 'bops'; the problem prices latency_ms, sensitivity"):
        problem.with_budgets({"bops": 1.0})


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.02, 0.9))
def test_repair_lands_within_budget(seed: int, share: float) -> None:
    problem = Problem.from_doc(chain_document(6, bits=(2, 4, 8), share=share, seed=seed))
    rng = np.random.default_rng(seed)
    wish = problem.policy([int(rng.integers(0, 9)) for _ in problem.groups])
    repaired = problem.repair(wish)
    assert problem.violation(repaired) == {}
    assert repaired == wish or problem.violation(wish)


def test_repair_says_what_is_achievable() -> None:
    problem = TOYS["chain"].problem.with_budgets({"latency_ms": 2.0})
    with pytest.raises(InfeasibleError, match=r"latency_ms 3 \(budget 2\)") as caught:
        problem.repair(Policy.uniform("abc", W8A8))
    assert caught.value.minimum == {"latency_ms": 3.0}


def test_repair_snaps_a_wish_to_what_layers_can_do() -> None:
    problem = TOYS["tied"].problem
    wish = {"a": Precision.parse("w3a4"), "b": Precision.parse("w4a8"), "c": Precision.parse("w8a8")}
    assert list(map(str, problem.repair(wish).values())) == ["w4a8", "w4a8", "w8a8"]


def moves_agree(problem: Problem, assignment: np.ndarray[Any, Any]) -> None:
    """Every priced move equals the assignment priced afresh."""
    objective, over, joint = problem.near.price(assignment)
    for move in np.flatnonzero(over < np.inf):
        after = problem.near.apply(assignment, int(move), joint)[None]
        assert problem.tables.respects_ties(after)[0]
        assert objective[move] == pytest.approx(problem.tables.total(problem.objective, after)[0])
        assert over[move] == pytest.approx(problem.near.excess(after)[0], abs=1e-9)


@pytest.mark.parametrize("objective", ["sensitivity", "latency_ms", "energy_mj", "peak_activation_bytes"])
@pytest.mark.parametrize("tied", [False, True])
def test_moves_are_priced_right(objective: str, tied: bool) -> None:
    doc = document()
    doc |= {"objective": objective, "budgets": {"latency_ms": 4.0, "peak_activation_bytes": 15.0, "energy_mj": 0.5}}
    if tied:
        doc |= {"ties": [], "activation_ties": [["a", "c"]]}
    problem = Problem.from_doc(doc)
    for row in np.ndindex(*problem.tables.sizes):
        if problem.tables.respects_ties(np.array([row]))[0]:
            moves_agree(problem, np.array(row))


def set_at(*path: Any) -> Callable[[Doc], None]:
    """A change: everything but the last argument is the path, the last is the value."""

    def change(doc: Doc) -> None:
        at: Any = doc
        for key in path[:-2]:
            at = at[key]
        at[path[-2]] = path[-1]

    return change


def remove(*path: Any) -> Callable[[Doc], None]:
    def change(doc: Doc) -> None:
        at: Any = doc
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    return change


FIRST = ("layers", 0, "choices", 0)
HOSTILE: dict[str, tuple[Callable[[Doc], None], str]] = {
    "unknown key": (set_at("layer", []), "layer: unknown key; remove it or check its spelling"),
    "unknown key in a choice": (set_at(*FIRST, "latency", 1), r"layers.0 \(a\).choices.0.latency: unknown key"),
    "wrong type": (set_at(*FIRST, "costs", "latency_ms", "fast"), r"\(a\).choices.0.costs.latency_ms: .*valid number"),
    "boolean": (set_at(*FIRST, "sensitivity", True), r"choices.0.sensitivity: .*valid number \(got True\)"),
    "nan": (set_at(*FIRST, "sensitivity", math.nan), r"choices.0.sensitivity: .*finite number \(got nan\)"),
    "infinite cost": (set_at(*FIRST, "costs", "latency_ms", math.inf), "latency_ms: .*finite number"),
    "negative cost": (set_at(*FIRST, "costs", "latency_ms", -1), r"latency_ms: .*greater than or equal to 0 \(got -1"),
    "negative edge": (set_at("edges", 0, "costs", 0, 1, -1), r"edges.0.costs.0.1: .*greater than or equal to 0"),
    "negative tensor": (set_at("tensors", 0, "costs", 0, 1, -1), r"tensors.0.costs.0.1: .*greater than or equal to 0"),
    "negative bytes": (set_at("peak", 0, "live", "a", [-1, 2]), r"peak.0.live.a.0: .*greater than or equal to 0"),
    "overflow": (set_at(*FIRST, "costs", "latency_ms", 1.7e308), "latency_ms: the values add up to more than 1e"),
    "no layers": (set_at("layers", []), "layers: .*at least 1 item"),
    "no choices": (set_at("layers", 0, "choices", []), r"layers.0 \(a\).choices: .*at least 1 item"),
    "no sensitivity": (remove(*FIRST, "sensitivity"), r"choices.0.sensitivity: missing; add it"),
    "no bits": (remove(*FIRST, "weight_bits"), "layer a: choice 0: weight_bits must be a whole number"),
    "bits that are no number of bits": (
        set_at(*FIRST, "weight_bits", 0),
        "layer a: choice 0: unknown number format 'int0'",
    ),
    "fractional bits": (set_at(*FIRST, "weight_bits", 4.5), "choices.0.weight_bits: .*valid integer"),
    "bits against format": (
        set_at(*FIRST, "weight_format", "fp16"),
        "weight_bits is 8 but weight_format 'fp16' has 16",
    ),
    "same precision twice": (set_at(*FIRST, "activation_bits", 8), "layer a: choice 1: w8a8 is choice 0 already"),
    "metrics differ": (set_at(*FIRST, "costs", "bops", 1), "layer a: choice 1 does not price bops|choice 1 prices"),
    "duplicate layer": (set_at("layers", 1, "name", "a"), "layers: 'a' stands 2 times"),
    "unknown layer in ties": (set_at("ties", 0, ["b", "x"]), "ties.0: unknown layer 'x'; the layers are a, b, c"),
    "unknown layer in activation ties": (
        set_at("activation_ties", [["x", "a"]]),
        "activation_ties.0: unknown layer 'x'",
    ),
    "unknown layer in edges": (set_at("edges", 0, "to", "x"), "edges.0: unknown layer 'x'"),
    "unknown layer in tensors": (set_at("tensors", 0, "to", ["x"]), "tensors.0: unknown layer 'x'"),
    "unknown layer in interactions": (
        set_at("interactions", 0, "between", ["a", "x"]),
        "interactions.0: unknown layer",
    ),
    "unknown layer in peak": (set_at("peak", 0, "live", {"x": [1]}), r"peak.0 \(a\): unknown layer 'x'"),
    "interaction of three": (set_at("interactions", 0, "between", ["a", "b", "c"]), "between: .*at most 2 items"),
    "edge shape": (set_at("edges", 0, "costs", [[0, 1]]), r"edges.0 \(a -> b\): costs is 1 x 2, expected 2 x 2"),
    "ragged edge": (set_at("edges", 0, "costs", [[0], [1, 2]]), r"costs is 2 rows of \[1, 2\] columns, expected 2 x 2"),
    "interaction shape": (set_at("interactions", 0, "costs", []), r"interactions.0 \(a -> b\): costs is 0 rows"),
    "tensor shape": (
        set_at("tensors", 0, "costs", [[0, 1]]),
        r"tensors.0 \(a -> b, c\): costs is 1 x 2, expected 2 x 2",
    ),
    "tensor without readers": (set_at("tensors", 0, "to", []), "tensors.0.to: .*at least 1 item"),
    "tensor format missing": (
        set_at("tensors", 0, "activation_bits", [4, 6]),
        "a may use int8, which is not among int4, int6",
    ),
    "tensor format twice": (set_at("tensors", 0, "activation_bits", [4, 4]), "int4 is listed twice"),
    "tensor without formats": (
        remove("tensors", 0, "activation_bits"),
        "give either activation_bits or activation_formats",
    ),
    "input tensor of two rows": (set_at("tensors", 0, "from", None), "costs is 2 x 2, expected 1 x 2"),
    "peak entries": (set_at("peak", 0, "live", "a", [1]), r"peak.0 \(a\): a has 1 entries, expected 2, one per choice"),
    "peak among costs": (
        set_at("edges", 0, "metric", "peak_activation_bytes"),
        "peak_activation_bytes is no sum over layers",
    ),
    "sensitivity among costs": (set_at("edges", 0, "metric", "sensitivity"), "sensitivity is no cost"),
    "tied choices differ": (
        set_at("layers", 1, "choices", [layer("b", {"w8a8": (1, 2)})["choices"][0]]),
        "ties: tied layers need equally many choices, but b has 1, c has 2",
    ),
    "no shared format": (
        lambda doc: doc.update(
            layers=[layer("a", {"w8a8": (1, 2)}), layer("b", {"w8a4": (1, 2)}), *doc["layers"][2:]],
            ties=[],
            edges=[],
            tensors=[],
            interactions=[],
            peak=[],
            activation_ties=[["a", "b"]],
        ),
        "activation_ties: a, b share no activation format; give them one in common",
    ),
    "budget of zero": (
        set_at("budgets", "latency_ms", 0),
        "budgets.latency_ms: 0 leaves room for nothing; give a bound above 0",
    ),
    "negative budget": (set_at("budgets", "latency_ms", -3), "budgets.latency_ms: -3 leaves room for nothing"),
    "budget that is not a number": (set_at("budgets", "latency_ms", "4"), "budgets.latency_ms: .*valid number"),
    "budget on an unknown metric": (
        set_at("budgets", "latency", 4),
        "budgets: unknown metric 'latency'; the problem prices latency_ms",
    ),
    "unknown objective": (
        set_at("objective", "speed"),
        "objective: unknown metric 'speed'; the problem prices latency_ms",
    ),
    "no objective": (remove("objective"), "objective: missing; add it"),
    "no budgets": (remove("budgets"), "budgets: missing; add it"),
    "other version": (set_at("schema_version", 2), r"schema_version: .*1 \(got 2\)"),
    "offset of nothing": (set_at("offsets", {"bops": 1}), "offsets: no additive metric 'bops'"),
    "negative offset": (set_at("offsets", {"latency_ms": -1}), "offsets.latency_ms: -1 is negative"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_get_one_clear_line(name: str) -> None:
    change, message = HOSTILE[name]
    doc = copy.deepcopy(document())
    change(doc)
    with pytest.raises(InputError, match=message) as caught:
        Problem.from_doc(doc)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"schema_version": 1', "not valid JSON"),
        ('{"schema_version": 1, "schema_version": 1}', "the key 'schema_version' appears twice"),
        ('{"schema_version": NaN}', "NaN is not a number that can be used here"),
        ("[]", "top level: .*valid dictionary"),
        ("3", "top level: .*valid dictionary"),
    ],
)
def test_hostile_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "problem.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"problem\.json: .*{message}") as caught:
        load_problem(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        load_problem(tmp_path / "none.json")


def test_sensitivity_budgets_may_be_negative_where_sensitivities_are() -> None:
    doc = {**document(), "budgets": {"sensitivity": -0.25}}
    assert Problem.from_doc(doc).budgets == {"sensitivity": -0.25}
    del doc["interactions"]
    with pytest.raises(InputError, match=r"budgets\.sensitivity: -0\.25 leaves room for nothing"):
        Problem.from_doc(doc)
