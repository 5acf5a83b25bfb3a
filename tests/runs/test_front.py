"""Experiments that list budgets or devices: one run for each point, and what they say together."""

import json
from pathlib import Path

import pytest

from haq.experiment.experiment import Experiment
from haq.hardware.costs import cost_report
from haq.runs.front import points, run_front
from haq.values.errors import InfeasibleError, InputError
from haq.values.policy import Policy

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
FAST = ["search.max_trials=2", "sensitivity.samples=64", "evaluator.samples=100"]
SEVERAL = [
    'device.profile=["riscv_xpulpnn", "bitfusion"]',
    'budgets={latency_ms=["1%", "90%", "95%"], size_bytes="100%"}',
]


def load(*overrides):
    return Experiment.load(QUICKSTART, overrides=[*FAST, *overrides])


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    folder = tmp_path_factory.mktemp("front") / "run"
    run_front(load(*SEVERAL), out=folder)
    return folder, json.loads((folder / "front.json").read_text())


def test_every_device_meets_every_bound():
    listed = points(load(*SEVERAL).config)
    assert [point.name for point in listed][:2] == ["riscv_xpulpnn-latency_ms-1pct", "riscv_xpulpnn-latency_ms-90pct"]
    assert len(listed) == 6
    assert len({(point.device, point.budgets["latency_ms"]) for point in listed}) == 6
    assert len(points(load().config)) == 1


def test_each_answer_is_within_its_budgets_and_no_larger_budget_scores_less(front):
    _, document = front
    for device in ("riscv_xpulpnn", "bitfusion"):
        tight, *rest = (entry for entry in document["points"] if entry["device"] == device)
        assert tight["status"] == "infeasible"
        assert tight["minimum"]["latency_ms"] > 0
        part = load(f"device.profile={device}")
        whole = cost_report(part.network, part.cost_model, part.reference_policy).totals["latency_ms"]
        for entry, share in zip(rest, (0.9, 0.95), strict=True):
            costs = cost_report(part.network, part.cost_model, Policy.from_doc(entry["policy"])).totals
            assert entry["costs"]["latency_ms"] == pytest.approx(costs["latency_ms"], rel=1e-12)
            assert costs["latency_ms"] <= share * whole * (1 + 1e-12)
        assert rest[0]["search_score"] <= rest[1]["search_score"]
        same = rest[1]["policy"] == rest[0]["policy"]
        assert rest[1]["same_policy_as"] == (rest[0]["point"] if same else None)


def test_the_transfer_table_prices_each_policy_on_the_other_device(front):
    _, document = front
    row = next(row for row in document["transfer"] if row["device"] == "bitfusion")
    entry = next(entry for entry in document["points"] if entry["point"] == row["policy_of"])
    assert entry["device"] == "riscv_xpulpnn"
    other = load("device.profile=bitfusion")
    expected = cost_report(other.network, other.cost_model, Policy.from_doc(entry["policy"])).totals
    assert row["costs"] == pytest.approx(expected)


def test_points_of_a_device_share_one_scoring(front):
    folder, _ = front
    tables = [path.read_bytes() for path in sorted(folder.glob("riscv*/sensitivity.json"))]
    assert len(tables) == 2
    assert len(set(tables)) == 1


@pytest.mark.slow
def test_files_are_there_and_a_second_run_must_resume(front):
    folder, document = front
    assert {"front.csv", "front.json", "compare.html"} <= {path.name for path in folder.iterdir()}
    found = {entry["point"] for entry in document["points"] if entry["policy"]}
    assert {path.stem for path in (folder / "policies").iterdir()} == found
    with pytest.raises(InputError, match="a run already exists; add --resume"):
        run_front(load(*SEVERAL), out=folder)
    before = {path: path.read_bytes() for path in folder.glob("*/trials.jsonl")}
    _, again = run_front(load(*SEVERAL), out=folder, resume=True)
    assert again["points"] == document["points"]
    assert {path: path.read_bytes() for path in folder.glob("*/trials.jsonl")} == before


@pytest.mark.slow
def test_with_a_ladder_each_point_keeps_the_answer_of_its_own_run(tmp_path):
    front = load('budgets.latency_ms=["90%", "95%"]', 'evaluator.ladder=["ptq", "bn"]')
    folder, document = run_front(front, out=tmp_path / "run")
    for entry in document["points"]:
        result = json.loads((folder / entry["point"] / "result.json").read_text())
        assert entry["policy"] == result["answer"]["policy"]
        assert entry["test_score"] == result["answer"]["test_score"]


def test_nothing_feasible_is_told(tmp_path):
    with pytest.raises(InfeasibleError, match="no policy meets the budgets on riscv_xpulpnn"):
        run_front(load("budgets={latency_ms=[1e-9, 1e-8]}"), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("budgets={latency_ms=[]}", "list each bound once"),
        ('budgets={latency_ms=["50%", "50%"]}', "list each bound once"),
        ('budgets={latency_ms=["50%", "fast"]}', "a budget is a number above 0"),
        ('budgets={latency_ms=["50%"], size_bytes=["50%"]}', "only one budget may list several bounds"),
        ('device.profile=["bitfusion", "bitfusion"]', "a device appears twice"),
        ("device.profile=[]", "name a device"),
    ],
)
def test_lists_that_make_no_sense_are_refused(override, told):
    with pytest.raises(InputError, match=told):
        load(override)


def test_commands_for_one_point_say_so():
    with pytest.raises(InputError, match=r"device\.profile lists riscv_xpulpnn, bitfusion, which only haq"):
        _ = load(SEVERAL[0]).profile
    with pytest.raises(InputError, match=r"budgets\.latency_ms lists several bounds"):
        _ = load(SEVERAL[1]).budgets
