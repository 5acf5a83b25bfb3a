"""The numbers that the page says in words, against a run whose numbers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_run import write_fake_run

from haq.report import facts
from haq.report.figures.costs import costs_data
from haq.report.units import amount, column
from haq.results.read import Run, load_run
from haq.results.schema import Breakdown, Entry


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of three layers: scores and noise differ by split, the latency budget is 4 ms and 3 are used."""
    folder = write_fake_run(tmp_path / "run", layers=3, trials=3)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    result["float"] = {"search_score": 95.0, "test_score": 93.0}
    result["score_noise"] = 0.7
    result["answer"] |= {"score": 91.0, "test_score": 92.0, "test_noise": 0.1}
    result["baselines"]["uniform"] |= {"score": 99.0, "test_score": 89.5, "test_noise": 0.2}
    result["answer"]["costs"]["latency_ms"] = 3.0
    result["budgets"] = {"latency_ms": 4.0, "accuracy_drop": 5.0}
    for layer, macs, params in zip(result["breakdown"]["layers"], (100, 300, 600), (50, 25, 25), strict=True):
        layer |= {"macs": macs, "params": params}
    (folder / "result.json").write_text(json.dumps(result))
    return load_run(folder)


def test_the_headline_is_of_the_test_split(run: Run) -> None:
    score, float_, uniform, *_ = facts.tiles(run)
    assert (score["value"], score["text"]) == ("92.00 %", "accuracy on the test split")
    assert (float_["value"], float_["text"]) == ("−1.00 points", "against the float model (93.00 %)")
    assert uniform["value"] == "+2.50 points"
    assert "tie" not in uniform["text"]


def test_without_a_test_score_the_headline_is_of_the_search_split(run: Run) -> None:
    result = run.result.model_copy(update={"answer": run.result.answer.model_copy(update={"test_score": None})})
    score, float_, *_ = facts.tiles(Run(run.path, result, run.provenance, run.trials, run.sensitivities))
    assert (score["value"], score["text"]) == ("91.00 %", "accuracy on the search split")
    assert (float_["value"], float_["text"]) == ("−4.00 points", "against the float model (95.00 %)")


def test_a_difference_is_the_firsts_lead_on_the_test_split_or_else_on_the_search_split() -> None:
    first = Entry(name="a", policy={}, costs={}, score=90.0, test_score=80.0)
    second = Entry(name="b", policy={}, costs={}, score=91.0, test_score=77.0)
    assert facts.difference(first, second) == 3.0
    assert facts.difference(first, second.model_copy(update={"test_score": None})) == -1.0


def test_budgets_say_what_is_used_and_what_is_left(run: Run) -> None:
    latency, drop = facts.budget_rows(run.result)
    assert (latency["limit"], latency["used"], latency["slack"]) == ("4 ms", "3 ms", "1 ms (25 %)")
    assert (drop["used"], drop["slack"]) == ("4 points", "1 points (20 %)")
    assert not latency["over"]


def test_layers_have_their_shares_of_work_weights_and_loss(run: Run) -> None:
    rows = facts.layer_rows(run, ["latency_ms"])
    assert [row["macs"] for row in rows] == ["10.0 %", "30.0 %", "60.0 %"]
    assert [row["params"] for row in rows] == ["50.0 %", "25.0 %", "25.0 %"]
    table = run.sensitivities
    for row, layer in zip(rows, run.result.breakdown.layers, strict=True):
        weight, activation = layer.precision.weight.name, layer.precision.activation.name
        loss = table[layer.name, "weight"][weight] + table[layer.name, "activation"][activation]
        assert run.sensitivity(layer.name, layer.precision) == loss
        assert float(row["sensitivity"]) == pytest.approx(loss, rel=0.06)


def test_conversions_add_up_at_the_layer_that_pays_them() -> None:
    def conversion(**where: Any) -> dict[str, Any]:
        return {**where, "written": "int8", "wanted": "int4", "costs": {"latency_ms": 1.0}}

    layer = {"precision": "w4a8", "costs": {"latency_ms": 10.0}}
    breakdown = Breakdown.model_validate(
        {
            "layers": [{"name": name, **layer} for name in ("a", "b", "c")],
            "switches": [conversion(tensor=f"t{i}", **{"from": "a"}, to=["b", "c"]) for i in range(2)],
            "joins": [conversion(name=f"add{i}", owner="c", other="a") for i in range(3)],
        }
    )
    data = costs_data(breakdown, "latency_ms")
    assert data.switches == (0.0, 2.0, 0.0)
    assert data.joins == (0.0, 0.0, 3.0)
    assert data.total == 35.0


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("size_bytes", 2.0**20, "1 MiB"),
        ("size_bytes", 1.5 * 2.0**10, "1.5 KiB"),
        ("size_bytes", 3.0 * 2.0**30, "3 GiB"),
        ("peak_activation_bytes", 2.0**20, "1 MiB"),
        ("peak_activation_bytes", 1e6, "976.6 KiB"),
        ("bops", 2.5e9, "2.5 GBOPs"),
        ("bops", 2.5e8, "250 MBOPs"),
        ("latency_ms", 0.25, "250 µs"),
        ("latency_ms", 2.5e-5, "25 ns"),
        ("latency_ms", 2500.0, "2.5 s"),
        ("energy_mj", 0.25, "250 µJ"),
        ("energy_mj", 2.5, "2.5 mJ"),
    ],
)
def test_units_are_what_they_say(metric: str, value: float, shown: str) -> None:
    assert amount(metric, value) == shown
    heading, (text,) = column(metric, [value])
    assert heading.endswith(shown.split()[1])
    assert float(text.replace(",", "")) == pytest.approx(float(shown.split()[0]))
