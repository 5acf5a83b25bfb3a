"""Ground truths and regret: numbers against brute force on the shipped table, and files on disk."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu

from haq.bench import load_ground_truth
from haq.bench.regret import Contender, Curves, cases, run, search
from haq.bench.statistics import smaller
from haq.bench.summary import overall, summary
from haq.commands.bench import bench_regret, contender
from haq.experiment.experiment import Experiment
from haq.values.errors import InputError

FOLDER = Path(__file__).parents[2] / "benchmarks" / "ground_truth"
TABLES = sorted(FOLDER.glob("*.json"))


@pytest.fixture(scope="module")
def truth():
    return load_ground_truth(FOLDER / "digits_cnn_ptq.json")


TOLERANCES = {"digits_cnn_ptq": (1e-3, 1e-3), "digits_cnn_bn": (0.01, 0.15)}
"""Of the loss, relative: the median over policies, and the worst one.

Batch norm that is re-estimated sums in the order of the processor's kernels, and the last digit of a sum decides how a
value between two levels rounds; at 2 bits that is much.
"""


def _against(truth, experiment, policy, split):
    """Images by which the score differs from the table's, and by what part the loss."""
    got, expected = truth.measure(policy, split), experiment.evaluator(split)(policy)
    images = abs(got.score - expected.score) / 100 * truth.about["samples"][split]
    return images, abs(got.details["loss"] / expected.details["loss"] - 1)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_holds_what_the_evaluator_measures(path):
    truth = load_ground_truth(path)
    experiment = Experiment.load(path.with_suffix(".toml"))
    rng = np.random.default_rng(0)
    policies = [truth.problem.policy(rng.integers(truth.problem.tables.sizes)) for _ in range(5)]
    found = [_against(truth, experiment, policy, split) for policy in policies for split in ("search", "test")]
    median, worst = TOLERANCES[path.stem]
    assert max(images for images, _ in found) < 1.5
    assert np.median([loss for _, loss in found]) < median
    assert max(loss for _, loss in found) < worst


def test_a_table_of_another_evaluator_is_out_of_the_tolerance():
    path = FOLDER / "digits_cnn_bn.json"
    truth = load_ground_truth(path)
    experiment = Experiment.load(path.with_suffix(".toml"), overrides=["evaluator.kind=ptq"])
    rng = np.random.default_rng(0)
    policies = [truth.problem.policy(rng.integers(truth.problem.tables.sizes)) for _ in range(5)]
    losses = [_against(truth, experiment, policy, "search")[1] for policy in policies]
    assert np.median(losses) > 5 * TOLERANCES[path.stem][0]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_is_small_and_complete(path):
    truth = load_ground_truth(path)
    assert path.stat().st_size + path.with_suffix(".npz").stat().st_size < 500_000
    assert truth.scores["search"].size == len(truth.assignments) >= 4096
    assert all(np.isfinite(values).all() for values in (*truth.scores.values(), *truth.losses.values()))


def test_regret_is_zero_exactly_when_the_best_policy_within_budget_was_measured(truth):
    (case,) = cases(truth, [0.01], metric="bops", score="loss")
    problem = case.problem()
    best = min(
        truth.losses["search"][choice]
        for choice in itertools.product(range(4), repeat=7)
        if not problem.violation(problem.policy(choice))
    )
    assert case.best("search") == -best
    curves = search(Contender("ilp", "ilp", {}), case, seed=0, evaluations=60)["search"]
    assert (np.diff(curves) <= 0).all()
    everything = search(Contender("random", "random", {}), case, seed=0, evaluations=int(case.within.sum()))
    assert everything["search"][-1] == 0.0


def test_the_share_of_policies_within_budget_is_the_one_asked_for(truth):
    for case in cases(truth, [0.02, 0.5, 1.0], metric="energy_mj"):
        assert case.within.mean() == pytest.approx(case.share, abs=0.01)


def test_regret_on_the_test_split_is_that_of_the_policy_chosen_on_the_search_split(truth):
    (case,) = cases(truth, [0.3], metric="bops")
    problem = case.problem("fisher")
    curve = search(Contender("ilp", "ilp", {}, "fisher"), case, seed=0, evaluations=1)
    listed = truth.assignments[problem.within(truth.assignments)]
    first = tuple(listed[problem.tables.total("sensitivity", listed).argmin()])
    assert curve["test"][0] == pytest.approx(truth.scores["test"][case.within].max() - truth.scores["test"][first])


def test_p_values_separate_what_differs_and_only_that(truth):
    rng = np.random.default_rng(0)
    low, high = rng.random(20), rng.random(20) + 0.8
    assert smaller(low, high) < 1e-4 < 0.3 < smaller(low, low.copy()) < 0.7
    over = cases(truth, [0.2], metric="size_bytes", score="loss")
    both = [Contender("random", "random", {}), Contender("ilp", "ilp", {})]
    rows = overall(run(both, over, seeds=8, evaluations=10), evaluations=10)
    (row,) = [row for row in rows if row.get("p_against_random") is not None and row["split"] == "search"]
    assert row["strategy"] == "ilp"
    assert row["p_against_random"] < 0.01


@pytest.mark.parametrize("levels", [1000, 4], ids=["distinct", "tied"])
def test_p_values_are_those_of_scipy(levels):
    rng = np.random.default_rng(1)
    for _ in range(5):
        first, second = rng.integers(levels, size=7) / levels, (rng.integers(levels, size=11) + levels // 4) / levels
        expected = mannwhitneyu(first, second, alternative="less", method="asymptotic").pvalue
        assert smaller(first, second) == pytest.approx(expected, rel=1e-9)


def test_the_budget_of_a_share_is_the_least_that_keeps_so_many(truth):
    costs = np.sort(truth.problem.tables.total("size_bytes", truth.assignments))
    index = int(np.flatnonzero(np.diff(costs))[20])
    (case,) = cases(truth, [(index + 0.5) / (len(costs) - 1)], metric="size_bytes")
    assert case.bound == costs[index + 1] > costs[index]


def test_rows_say_median_and_quartiles_over_seeds(truth):
    (case,) = cases(truth, [0.2], metric="size_bytes")
    regret = np.array([[9.0, 1.0], [9.0, 5.0], [9.0, 2.0], [9.0, 8.0], [9.0, 3.0]])
    curve = Curves(Contender("ilp", "ilp", {}), case, {"search": regret, "test": regret + 1})
    for rows in (summary([curve], evaluations=2), overall([curve], evaluations=2)):
        (row,) = [row for row in rows if row["split"] == "search" and row["evaluations"] == 2]
        assert [row[key] for key in ("quartile_1", "median", "quartile_3", "worst")] == [2.0, 3.0, 5.0, 8.0]


def test_the_command_writes_table_curves_and_plot(tmp_path):
    document = bench_regret(
        [FOLDER / "digits_cnn_ptq.json"],
        ["random", "ilp:sensitivity=fisher"],
        out=tmp_path,
        seeds=2,
        evaluations=6,
        shares=[0.1],
        metrics=["bops"],
        score="metric",
    )
    assert json.loads((tmp_path / "regret.json").read_text()) == json.loads(json.dumps(document))
    assert "search split" in document["about"]["digits_cnn_ptq"]
    assert len(json.loads((tmp_path / "curves.json").read_text())[0]["regret"]["test"]) == 2
    assert (tmp_path / "regret.csv").read_text().count("\n") == 1 + 2 * 2 * 3
    with Image.open(tmp_path / "digits_cnn_ptq.png") as image:
        assert image.width > 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hill_climbing", "unknown strategy"),
        ("random:speed=3", "no option"),
        ("evolutionary:population", "option=value"),
    ],
)
def test_a_wrong_strategy_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        contender(text)


def test_wrong_metrics_shares_and_files_are_refused(truth, tmp_path):
    with pytest.raises(InputError, match="not priced"):
        cases(truth, [0.1], metric="latency")
    with pytest.raises(InputError, match="at most 1"):
        cases(truth, [1.1], metric="bops")
    with pytest.raises(InputError, match="no sensitivities by"):
        truth.with_metric("magic")
    copy = tmp_path / "copy.json"
    copy.write_bytes((FOLDER / "digits_cnn_ptq.json").read_bytes())
    with pytest.raises(InputError, match=r"copy.npz: no such file"):
        load_ground_truth(copy)
    np.savez(tmp_path / "copy.npz", score_search=np.zeros(3))
    with pytest.raises(InputError, match="score_search is"):
        load_ground_truth(copy)


def test_a_table_survives_the_round_trip(truth, tmp_path):
    truth.save(tmp_path / "again.json")
    again = load_ground_truth(tmp_path / "again.json")
    assert again.problem.signature == truth.problem.signature
    assert all(np.array_equal(again.losses[split], truth.losses[split]) for split in truth.losses)
    assert again.sensitivities == truth.sensitivities
