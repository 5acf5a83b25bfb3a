"""`scripts/compare_strategies.py` on a small network."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from haq.evaluate import PTQEvaluator
from haq.experiment.experiment import Experiment
from haq.values.policy import Policy

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "quickstart.toml"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_strategies", ROOT / "scripts" / "compare_strategies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_strategies"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compared(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four strategies, two seeds, three evaluations; then the report."""
    out = tmp_path_factory.mktemp("compare")
    only = ["uniform", "random", "adaptive_ilp", "ilp, sqnr"]
    for options in (["--only", *only], ["--report", str(out / "report")]):
        command = [str(EXPERIMENT), "--evaluations", "3", "--seeds", "2", "--out", str(out), *options]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["compare_strategies.py", *command])
            patch.setattr(script, "RESAMPLES", 50)
            script.main()
    return out


def test_the_answer_is_the_best_measured_and_its_test_accuracy_is_that_of_the_evaluator(compared: Path) -> None:
    (path,) = compared.glob("*/random-1/result.json")
    result = json.loads(path.read_text())
    trials = [json.loads(line) for line in (path.parent / "trials.jsonl").read_text().splitlines()[1:]]
    assert result["score"] == max(trial["measurement"]["score"] for trial in trials)
    assert result["score"] == pytest.approx(-result["search"]["loss"])
    experiment = Experiment.load(EXPERIMENT)
    measured = PTQEvaluator(experiment.quantized, experiment.data.test)(Policy.from_doc(result["policy"]))
    assert result["test_accuracy"] == pytest.approx(measured.score)
    assert result["test_loss"] == pytest.approx(measured.details["loss"], rel=1e-4)


def test_strategies_without_randomness_run_once(compared: Path) -> None:
    assert len(list(compared.glob("*/random-*"))) == 2
    assert len(list(compared.glob("*/uniform-*"))) == len(list(compared.glob("*/ilp_*"))) == 1


def test_the_report_has_all_strategies_the_best_first_and_plots(compared: Path) -> None:
    ((_, rows),) = json.loads((compared / "report" / "comparison.json").read_text()).items()
    assert sorted(row["strategy"] for row in rows) == ["adaptive_ilp", "ilp, sqnr", "random", "uniform"]
    assert [row["test_accuracy"] for row in rows] == sorted((row["test_accuracy"] for row in rows), reverse=True)
    assert rows[0]["tied_with_best"]
    assert (compared / "report" / "comparison.md").read_text().count("\n| ") == 5
    assert len(list((compared / "report").glob("*.png"))) == 2


def test_the_bootstrap_finds_a_difference_where_there_is_one(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RESAMPLES", 300)
    rng = np.random.default_rng(0)
    good, bad = (rng.random((3, 4000)) < rate for rate in (0.95, 0.90))
    low, high = script.behind(good.astype(float), bad.astype(float))
    assert 3.0 < low < 5.0 < high < 7.0
    low, high = script.behind(good.astype(float), good[::-1].astype(float))
    assert low < 0.0 < high
