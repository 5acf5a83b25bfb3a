"""`haq sweep`: the grid of a sweep file, and what is refused; running it is slow."""

import csv
import json
import sys
from pathlib import Path

import pytest

from haq import Experiment, InputError
from haq.runs.sweep import load_sweep, run_point, run_sweep, sweep_runs

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "experiments" / "sweeps").glob("*.toml"))
SCHEDULER = "[scheduler]\nkind = 'asha'\n"
HEAD = f'experiment = "{(ROOT / "experiments" / "quickstart.toml").as_posix()}"\n'


def written(tmp_path, text):
    path = tmp_path / "sweep.toml"
    path.write_text(HEAD + text)
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_point_of_a_shipped_sweep_is_an_experiment(path):
    config = load_sweep(path)
    for run in sweep_runs(config):
        Experiment.load(path.parent / config.experiment, overrides=run.overrides)


def test_the_grid_is_the_product_of_its_lists(tmp_path):
    text = (
        'strategies = ["ilp", "random"]\ndevices = ["cortex_m7"]\nseeds = [3, 4]\n[[budgets]]\nsize_bytes = "50%"\n'
        '[[budgets]]\nlatency_ms = 2.5\nsize_bytes = "40%"\n[options.ilp]\ngap = 0.5\n'
    )
    config = load_sweep(written(tmp_path, text))
    loaded = [Experiment.load(config.experiment, overrides=run.overrides).config for run in sweep_runs(config)]
    points = [(c.search.strategy, c.device.profile, tuple(c.budgets.items()), c.seed) for c in loaded]
    first, second = (("size_bytes", "50%"),), (("latency_ms", 2.5), ("size_bytes", "40%"))
    assert points == [
        (strategy, "cortex_m7", budgets, seed)
        for strategy in ("ilp", "random")
        for budgets in (first, second)
        for seed in (3, 4)
    ]
    assert [c.search.options for c in loaded[::4]] == [{"gap": 0.5}, {}]
    assert len({c.name for c in loaded}) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strategy = ['ilp']", r"sweep\.toml: strategy: unknown key"),
        ("seeds = [1, 1]", "s1 appears twice"),
        ("strategies = ['ilp']\n[options.random]\n", r"options\.random: not among strategies"),
        ("seeds = ['a']", r"sweep\.toml: seeds\.0"),
        ("strategies = ['ipl']", "unknown"),
        ("[scheduler]\nkind = 'hyperband'\n", r"sweep\.toml: scheduler\.kind: .*'asha'"),
        ("[scheduler]\nreduction = 2\n", r"sweep\.toml: scheduler\.kind: missing"),
        ("seeds = [1, 2]\n[scheduler]\nkind = 'asha'\nreduction = 1\n", r"scheduler\.reduction: .*greater than 1"),
        ("seeds = [1, 2]\n[scheduler]\nkind = 'asha'\ngrace = 1\n", r"scheduler\.grace: unknown key"),
        (
            f"devices = ['cortex_m7', 'bitfusion']\n{SCHEDULER}",
            "scheduler: no two runs have the same device",
        ),
        (f"seeds = [1, 2]\n{SCHEDULER}grace_evaluations = 8\n", r"grace_evaluations = 8: no run .*max_trials = 8"),
        (
            f"seeds = [1, 2]\nbudgets = [{{accuracy_drop = 1.0}}]\n{SCHEDULER}",
            "scheduler: compares runs by score",
        ),
    ],
)
def test_a_wrong_sweep_is_one_line_and_leaves_nothing(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        run_sweep(written(tmp_path, text), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_experiment_with_workers_of_its_own_is_refused(tmp_path):
    experiment = (ROOT / "experiments" / "quickstart.toml").read_text() + '\n[executor]\nkind = "ray"\n'
    (tmp_path / "quickstart.toml").write_text(experiment)
    path = tmp_path / "sweep.toml"
    path.write_text('experiment = "quickstart.toml"\nseeds = [0, 1]\n')
    with pytest.raises(InputError, match=r"quickstart\.toml: executor\.kind = 'ray': .* take haq sweep --workers N"):
        run_sweep(path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_not_taken(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(InputError, match="add --resume"):
        run_sweep(written(tmp_path, ""), out=tmp_path / "out")


def test_a_sweep_that_was_begun_with_another_file_is_not_resumed(tmp_path):
    (tmp_path / "out").mkdir()
    config = load_sweep(written(tmp_path, "seeds = [1, 2]\n"))
    (tmp_path / "out" / "sweep.json").write_text(json.dumps({"sweep": config.model_dump(mode="json")}))
    with pytest.raises(InputError, match=r"sweep\.json: was begun with another scheduler; resume with that"):
        run_sweep(written(tmp_path, f"seeds = [1, 2]\n{SCHEDULER}"), out=tmp_path / "out", resume=True)


def test_runs_compete_for_the_same_device_and_budgets_whatever_strategy_and_seed(tmp_path):
    text = "strategies = ['ilp', 'random']\ndevices = ['cortex_m7', 'bitfusion']\nseeds = [3, 4]\n"
    budgets = "[[budgets]]\nsize_bytes = '50%'\n[[budgets]]\nsize_bytes = '40%'\n"
    groups = {}
    for run in sweep_runs(load_sweep(written(tmp_path, text + budgets))):
        config = Experiment.load(ROOT / "experiments" / "quickstart.toml", overrides=run.overrides).config
        groups.setdefault(run.group, set()).add((config.device.profile, str(config.budgets)))
    assert [len(problems) for problems in groups.values()] == [1, 1, 1, 1]
    assert len(set.union(*groups.values())) == 4


def own_trials(folder):
    lines = (folder / "trials.jsonl").read_text().splitlines()[1:]
    return [trial for trial in map(json.loads, lines) if trial["source"] == folder.name.partition("-")[0]]


def test_a_run_tells_the_score_of_each_proposal_and_again_when_it_is_resumed(tmp_path):
    overrides = [
        "search.max_trials=3",
        "search.strategy=random",
        "evaluator.samples=64",
        "space.weights=['int2','int8']",
    ]
    point = {"label": "random", "folder": str(tmp_path / "random"), "overrides": overrides}
    point["experiment"] = str(ROOT / "experiments" / "quickstart.toml")
    told, again = [], []
    assert run_point(point, told.append)["test_score"] > 0
    assert told == [trial["measurement"]["score"] for trial in own_trials(tmp_path / "random")]
    assert len(told) == 3
    (tmp_path / "random" / "result.json").unlink()
    run_point(point, again.append)
    assert again == told


@pytest.mark.slow
@pytest.mark.ray
def test_asha_ends_a_run_that_is_behind_and_leaves_it_out(tmp_path):
    pytest.importorskip("ray")
    # Random proposals are a point and more behind the exact optimum's; greedy makes one and is never judged.
    text = f"strategies = ['ilp', 'greedy', 'random']\n[[budgets]]\nsize_bytes = '33%'\n{SCHEDULER}"
    path, out = written(tmp_path, f"{text}grace_evaluations = 2\nreduction = 2\n"), tmp_path / "out"
    rows = run_sweep(path, out=out)
    assert [row.get("stopped_after") for row in rows] == [None, None, 2]
    assert [row["error"] for row in rows] == ["", "", ""]
    assert rows[2]["verdict"].startswith("stopped after 2 evaluations")
    proposed = own_trials(out / "random-b0")
    assert rows[2]["score"] == max(trial["measurement"]["score"] for trial in proposed)
    assert len(proposed) == 2
    assert len(own_trials(out / "ilp-b0")) == 8
    assert "random-b0" not in (out / "compare" / "compare.csv").read_text()
    before = (out / "random-b0" / "trials.jsonl").read_bytes()
    assert run_sweep(path, out=out, resume=True) == rows
    assert (out / "random-b0" / "trials.jsonl").read_bytes() == before
    assert json.loads((out / "sweep.json").read_text())["runs"] == rows


@pytest.fixture
def without_ray(monkeypatch):
    """As in an installation that lacks it."""
    monkeypatch.setitem(sys.modules, "haq.execute.tune", None)
    monkeypatch.delattr("haq.execute.tune", raising=False)


@pytest.mark.usefixtures("without_ray")
def test_one_worker_needs_no_ray(tmp_path):
    experiment = (ROOT / "experiments" / "quickstart.toml").read_text().replace("max_trials = 8", "max_trials = 2")
    (tmp_path / "quickstart.toml").write_text(experiment)
    path, out = tmp_path / "sweep.toml", tmp_path / "out"
    path.write_text(
        'experiment = "quickstart.toml"\nseeds = [0, 1]\nbudgets = [{size_bytes = "50%"}, {size_bytes = 10}]\n'
    )
    rows = run_sweep(path, out=out)
    assert [bool(row["error"]) for row in rows] == [False, False, True, True]
    result = json.loads((out / "b0-s1" / "result.json").read_text())
    assert rows[1]["test_score"] == result["answer"]["test_score"]
    assert rows[1]["coverage"] == result["coverage"]["line"]
    compared = list(csv.DictReader((out / "compare" / "compare.csv").open()))
    shares = [float(row["quantized_bytes_percent"]) for row in compared]
    assert shares == pytest.approx(
        [100 * result["coverage"]["quantized_bytes"] / result["coverage"]["bytes"]] * 2, rel=0.2
    )
    assert run_sweep(path, out=out, resume=True) == rows
    with pytest.raises(InputError, match=r"need Ray Tune: pip install 'haq\[ray\]'"):
        run_sweep(path, out=tmp_path / "other", workers=2)


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_runs_compares_and_resumes(tmp_path):
    pytest.importorskip("ray")
    # The second budget cannot be met: its run fails, the other goes on.
    text = 'seeds = [0, 1]\n[[budgets]]\nsize_bytes = "50%"\n[[budgets]]\nsize_bytes = 10\n'
    path, out = written(tmp_path, text), tmp_path / "out"
    rows = run_sweep(path, out=out, workers=2)
    assert [row["label"] for row in rows] == ["b0-s0", "b0-s1", "b1-s0", "b1-s1"]
    assert [bool(row["error"]) for row in rows] == [False, False, True, True]
    assert "no policy meets the budgets" in rows[2]["error"]
    assert (out / "compare" / "compare.html").exists()
    before = (out / "b0-s0" / "result.json").stat().st_mtime_ns
    assert run_sweep(path, out=out, resume=True) == rows
    assert (out / "b0-s0" / "result.json").stat().st_mtime_ns == before
    assert json.loads((out / "sweep.json").read_text())["runs"] == rows
