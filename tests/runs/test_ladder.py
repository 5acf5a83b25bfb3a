"""The ladder of fidelities: who climbs it, and whether its rungs rank alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from haq.edges.progress import Silent
from haq.experiment.config import load_experiment
from haq.experiment.experiment import Experiment
from haq.runs.ladder import compare_rungs, rank_correlation
from haq.runs.search import run_experiment
from haq.values.errors import InputError
from haq.values.policy import Policy

EXPERIMENT = """
[model]
name = "digits_cnn"
[data]
name = "digits"
[device]
profile = "bismo_cloud"
[space]
weights = ["int2", "int3", "int4"]
activations = ["int4"]
[quantization]
calibration_samples = 128
[search]
strategy = "random"
max_trials = 5
[cache]
enabled = false
[evaluator]
kind = "ptq"
ladder = ["ptq", "bn", "qat:3"]
reduction = 2.0
[budgets]
average_weight_bits = 3.0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.toml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("ladder")
    (folder / "x.toml").write_text(EXPERIMENT)
    return run_experiment(Experiment.load(folder / "x.toml"), out=folder / "run")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def test_the_best_half_and_each_source_s_best_climb_and_the_answer_is_measured_on_the_last_rung(
    file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    _, result = run_experiment(Experiment.load(file), out=out)
    first, upper = lines(out / "trials.jsonl"), lines(out / "ladder.jsonl")
    within = [trial for trial in first if trial["costs"]["average_weight_bits"] <= 3.0]
    scores = {Policy.from_doc(t["policy"]).key: t["measurement"]["score"] for t in within}
    on_bn = {Policy.from_doc(t["policy"]).key for t in upper if t["measurement"]["fidelity"] == "bn"}
    on_top = [trial for trial in upper if trial["measurement"]["fidelity"] == "qat:3"]
    half = -(-len(scores) // 2)
    assert len(scores) > len(on_bn) >= half
    assert sum(score > min(scores[key] for key in on_bn) for score in scores.values()) >= half - 1
    assert 0 < len(on_top) <= len(on_bn)
    assert result["answer"]["score"] == max(trial["measurement"]["score"] for trial in on_top)
    assert {trial["source"] for trial in on_top} >= {trial["source"] for trial in within} - {"greedy"}
    assert result["trials"] == len(first)
    assert json.loads((out / "policy.json").read_text())["measured"]["fidelity"] == "qat:3"

    before = (out / "ladder.jsonl").read_bytes()
    (out / "policy.json").unlink()
    _, again = run_experiment(Experiment.load(file), out=out, resume=True)
    assert (out / "ladder.jsonl").read_bytes() == before
    assert again["answer"] == result["answer"]


def measured_on(path: Path) -> list[tuple[str, str, float]]:
    return sorted((str(t["policy"]), t["measurement"]["fidelity"], t["measurement"]["score"]) for t in lines(path))


@pytest.mark.parametrize("cut", [0.1, 0.4, 0.8, 0.99])
def test_finalists_journal_cut_anywhere_is_filled_up_again(
    file: Path, tmp_path: Path, finished: tuple[Path, dict], cut: float
) -> None:
    folder, result = finished
    out = tmp_path / "run"
    shutil.copytree(folder, out)
    whole = (folder / "ladder.jsonl").read_bytes()
    (out / "ladder.jsonl").write_bytes(whole[: int(cut * len(whole))])
    _, again = run_experiment(Experiment.load(file), out=out, resume=True)
    assert measured_on(out / "ladder.jsonl") == measured_on(folder / "ladder.jsonl")
    assert again["answer"] == result["answer"]


def test_rungs_are_compared_on_the_scores_that_their_evaluators_give(file: Path) -> None:
    experiment = Experiment.load(file, overrides=['evaluator.ladder=["ptq","bn"]'])
    document = compare_rungs(experiment, policies=6)
    policies = [Policy.from_doc(policy) for policy in document["policies"]]
    assert len({policy.key for policy in policies}) == 6
    scores = [[experiment.evaluator("search", rung=rung)(p).score for p in policies] for rung in ("ptq", "bn")]
    assert [rung["scores"] for rung in document["rungs"]] == scores
    (pair,) = document["pairs"]
    assert pair["rungs"] == ["ptq", "bn"]
    assert pair["spearman"]["value"] == pytest.approx(spearmanr(*scores)[0])
    assert pair["kendall"]["value"] == pytest.approx(kendalltau(*scores)[0])


def test_the_bootstrap_interval_is_about_fisher_s_for_normal_scores() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    x[:, 1] += x[:, 0]
    found = rank_correlation(x, spearmanr, 0)
    center, width = np.arctanh(found["value"]), 1.96 * np.sqrt(1.06 / 197)
    assert found["low"] == pytest.approx(np.tanh(center - width), abs=0.04)
    assert found["high"] == pytest.approx(np.tanh(center + width), abs=0.04)
    assert rank_correlation(np.ones((5, 2)), spearmanr, 0) == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('evaluator.ladder=["bn","qat"]', "begins with 'bn'"),
        ('evaluator.ladder=["ptq"]', "two rungs or more"),
        ('evaluator.ladder=["ptq","bn","ptq"]', "two rungs or more"),
        ('evaluator.ladder=["ptq","qat:0"]', "evaluator.ladder"),
        ("evaluator.ladder=[]", "`reduction` needs"),
    ],
)
def test_ladders_that_cannot_be_climbed_are_refused(file: Path, change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_experiment(file, overrides=[change])


def test_a_ladder_ranks_by_score_and_needs_policies_to_rank(file: Path) -> None:
    with pytest.raises(InputError, match=r"evaluator.ladder: ranks policies by score"):
        Experiment.load(file, overrides=["objective=latency_ms"]).check()
    with pytest.raises(InputError, match="at least 3"):
        compare_rungs(Experiment.load(file), policies=2)


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)

    def from_cache(self) -> int:
        return sum(int(text.split()[0]) for text in self.texts if "came from the cache" in text)


@pytest.mark.slow
def test_a_rung_s_measurements_are_kept_between_runs_apart_from_those_of_other_rungs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HAQ_CACHE_DIR", raising=False)
    caching = ("cache.enabled=true", f"cache.folder='{tmp_path / 'cache'}'")

    def run(name: str, *overrides: str) -> tuple[list[dict], int, int]:
        notes, out = Notes(), tmp_path / name
        run_experiment(Experiment.load(file, overrides=[*caching, *overrides]), out=out, reporter=notes)
        first = {str(trial["policy"]) for trial in lines(out / "trials.jsonl")}
        return lines(out / "ladder.jsonl"), notes.from_cache(), len(first)

    measured, hits, distinct = run("first")
    assert hits == 0
    again, hits, _ = run("again")
    assert (again, hits) == (measured, distinct + len(measured))
    _, hits, _ = run("longer", 'evaluator.ladder=["ptq","bn","qat:4"]')
    assert hits == distinct + sum(trial["measurement"]["fidelity"] == "bn" for trial in measured)


def test_comparing_rungs_keeps_their_measurements(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "cache"))
    overrides = ["cache.enabled=true", 'evaluator.ladder=["ptq","bn"]']
    notes = Notes()
    found = []
    for hits in (0, 8):
        found.append(compare_rungs(Experiment.load(file, overrides=overrides), policies=4, note=notes.note))
        assert notes.from_cache() == hits
    for one, other in zip(*(document["rungs"] for document in found), strict=True):
        assert {**one, "once": 0} == {**other, "once": 0}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("ladder", ['["ptq","bn","qat:3"]', '["ptq","shared","qat:2"]'])
def test_workers_climb_as_this_process_does(file: Path, tmp_path: Path, ladder: str) -> None:
    pytest.importorskip("ray")
    rows = []
    for name, options in (("here", ()), ("ray", ("executor.kind=ray", "executor.workers=2"))):
        overrides = ["threads=1", "search.parallel=1", f"evaluator.ladder={ladder}", *options]
        run_experiment(Experiment.load(file, overrides=overrides), out=tmp_path / name)
        measured = lines(tmp_path / name / "ladder.jsonl")
        rows.append({(str(t["policy"]), t["measurement"]["fidelity"]): t["measurement"]["details"] for t in measured})
    assert rows[0] == rows[1]
    assert len(rows[0]) >= 4


@pytest.mark.ray
@pytest.mark.slow
def test_workers_fine_tune_as_this_process_does(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    file, rows = tmp_path / "x.toml", []
    ladder = EXPERIMENT[EXPERIMENT.index("kind =") : EXPERIMENT.index("[budgets]")]
    file.write_text("threads = 1\n" + EXPERIMENT.replace(ladder, 'kind = "qat"\nqat.steps = 3\n'))
    for name, options in (("here", ()), ("ray", ("executor.kind=ray", "executor.workers=2"))):
        overrides = ["search.parallel=2", *options]
        run_experiment(Experiment.load(file, overrides=overrides), out=tmp_path / name)
        trials = sorted(lines(tmp_path / name / "trials.jsonl"), key=lambda trial: trial["number"])
        rows.append([(trial["policy"], trial["measurement"]["details"]) for trial in trials])
    assert rows[0] == rows[1]
    assert len(rows[0]) >= 5
