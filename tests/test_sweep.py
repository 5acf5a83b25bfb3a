"""`haq sweep`: the grid of a sweep file, and what is refused; running it is slow."""

import json
from pathlib import Path

import pytest

from haq import Experiment, InputError
from haq.sweep import load_sweep, run_sweep, sweep_runs

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "experiments" / "sweeps").glob("*.toml"))
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
        ("seeds = [1, 1]", "s1 stands twice"),
        ("strategies = ['ilp']\n[options.random]\n", r"options\.random: not among strategies"),
        ("seeds = ['a']", r"sweep\.toml: seeds\.0"),
        ("strategies = ['ipl']", "unknown"),
    ],
)
def test_a_wrong_sweep_is_one_line_and_leaves_nothing(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        run_sweep(written(tmp_path, text), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_not_taken(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(InputError, match="add --resume"):
        run_sweep(written(tmp_path, ""), out=tmp_path / "out")


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_runs_compares_and_resumes(tmp_path):
    pytest.importorskip("ray")
    # The second budget cannot be met: its run fails, the other goes on.
    text = 'seeds = [0, 1]\n[[budgets]]\nsize_bytes = "50%"\n[[budgets]]\nsize_bytes = 10\n'
    path, out = written(tmp_path, text), tmp_path / "out"
    rows = run_sweep(path, out=out)
    assert [row["label"] for row in rows] == ["b0-s0", "b0-s1", "b1-s0", "b1-s1"]
    assert [bool(row["error"]) for row in rows] == [False, False, True, True]
    assert "no policy meets the budgets" in rows[2]["error"]
    assert (out / "compare" / "compare.html").exists()
    before = (out / "b0-s0" / "result.json").stat().st_mtime_ns
    assert run_sweep(path, out=out, resume=True) == rows
    assert (out / "b0-s0" / "result.json").stat().st_mtime_ns == before
    assert json.loads((out / "sweep.json").read_text())["runs"] == rows
