"""What the first line of a result says: against float and uniform 8 bit, by numbers taken from elsewhere."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from haq import Experiment, run_experiment
from haq.commands.cli import app
from haq.evaluate import PTQEvaluator
from haq.hardware.costs import cost_report, float_totals
from haq.results.headline import headline
from haq.values.formats import Precision
from haq.values.policy import Policy


def document(**changes):
    answer = {"test_score": 97.5, "score": 98.0, "test_noise": 0.8, "policy": {"a": "w4a4"}}
    answer["costs"] = {"size_bytes": 100.0, "latency_ms": 2.0}
    eight = {"test_score": 98.5, "score": 98.4, "policy": {"a": "w8a8"}}
    eight["costs"] = {"size_bytes": 250.0, "latency_ms": 1.0}
    floating = {"test_score": 98.61, "search_score": 98.3, "costs": {"size_bytes": 1000.0}}
    return {"score_unit": "%", "answer": answer, "eight_bit": eight, "float": floating, **changes}


def test_the_first_line_compares_with_float_and_with_8_bit():
    assert headline(document()) == (
        "97.50 % on the test split (float 98.61 %, uniform 8 bit 98.50 %; one standard error 0.80 points): "
        "10x smaller than float; 2.5x smaller, 2x slower than uniform 8 bit."
    )


def test_where_8_bit_is_the_answer_it_is_said_once():
    eight = document()["eight_bit"]
    assert headline(document(answer={**eight, "test_noise": None})) == (
        "98.50 % on the test split (float 98.61 %, the answer is uniform 8 bit): 4x smaller than float."
    )


def test_scores_that_are_unknown_are_left_out():
    eight = {**document()["eight_bit"], "test_score": None}
    assert "uniform 8 bit 9" not in headline(document(eight_bit=eight))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    options = ["--out", str(folder), "--set", "search.max_trials=1", "--set", "space.weights=['int4','int2']"]
    done = CliRunner().invoke(app, ["search", "experiments/quickstart.toml", *options], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return folder, done


def test_8_bit_is_measured_although_it_is_no_choice(run):
    result = json.loads((run[0] / "result.json").read_text())
    experiment = Experiment.load("experiments/quickstart.toml")
    policy = Policy.uniform(experiment.network.layer_names, Precision.parse("w8a8"))
    assert result["eight_bit"]["policy"] == policy.to_doc()
    report = cost_report(experiment.network, experiment.cost_model, policy)
    assert result["eight_bit"]["costs"] == pytest.approx(report.totals)
    for key, split in (("score", "search"), ("test_score", "test")):
        assert result["eight_bit"][key] == pytest.approx(experiment.evaluator(split)(policy).score)


def test_float_weighs_what_torch_says(run):
    result = json.loads((run[0] / "result.json").read_text())
    experiment = Experiment.load("experiments/quickstart.toml")
    held = [*experiment.model.parameters(), *(b for b in experiment.model.buffers() if torch.is_floating_point(b))]
    folded = result["float"]["costs"]["size_bytes"]  # batch norms are folded: a weight less per channel
    assert folded == pytest.approx(sum(t.numel() * 4 for t in held), rel=0.03)
    assert result["float"]["costs"]["bops"] == pytest.approx(
        sum(layer.macs for layer in experiment.network.layers) * 1024
    )


def test_a_device_that_runs_float32_prices_its_time():
    experiment = Experiment.load("experiments/quickstart.toml", overrides=["device.profile=nvidia_a100"])
    totals = float_totals(experiment.network, experiment.cost_model)
    layers = [experiment.cost_model.layer_cost(one, Precision.parse("wfp32afp32")) for one in experiment.network.layers]
    assert totals["latency_ms"] >= sum(cost.latency_ms for cost in layers) > 0
    assert totals["average_weight_bits"] == 32


def test_the_terminal_keeps_to_80_columns_and_ends_with_the_next_commands(run):
    shown = run[1].stdout.splitlines()
    table = [line for line in shown if re.search(r"(score \[%\]|Latency|Energy|Weight size|Average)", line)]
    assert len(table) >= 5
    assert max(map(len, table)) <= 80
    assert shown[-2].strip().startswith("haq export ")
    assert shown[-1].strip().startswith("haq compare ")


def test_the_test_split_is_scored_once_for_each_policy(monkeypatch, tmp_path):
    """Answer, greedy, best uniform and 8 bit are often one policy."""
    scored = []
    plain = PTQEvaluator.__call__

    def counting(self, policy):
        if self.samples == test_samples:
            scored.append(policy.key)
        return plain(self, policy)

    experiment = Experiment.load(
        "experiments/quickstart.toml", overrides=["search.max_trials=1", "cache.enabled=false"]
    )
    test_samples = experiment.evaluator("test").samples
    assert test_samples != experiment.evaluator("search").samples
    monkeypatch.setattr(PTQEvaluator, "__call__", counting)
    run_experiment(experiment, out=tmp_path / "run")
    assert len(scored) == len(set(scored)) >= 3
