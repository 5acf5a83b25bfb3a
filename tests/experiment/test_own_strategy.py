"""A strategy of the user's own: in a file, through the command line; in a package, by its entry point."""

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from haq import Experiment, InputError
from haq.commands.cli import app
from haq.edges import plugins
from haq.edges.plugins import add_plugin
from haq.hardware import COST_MODELS, ProfileCostModel, parse_profile
from haq.search import STRATEGIES, SearchStrategy
from haq.testing import check_strategy

SOURCE = '''
from haq import SearchStrategy
from haq.search import RandomSearch


class Lucky(SearchStrategy):
    """Draws at random, and says so."""

    def __init__(self, problem, *, seed=0, tries: int = 3):
        self._inner = RandomSearch(problem, seed=seed + tries)

    def suggest(self, count):
        return self._inner.suggest(count)

    def update(self, trials):
        self._inner.update(trials)


class Nothing:
    pass
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "mine_of_luck.py").write_text(SOURCE)
    text = (
        Path("experiments/quickstart.toml").read_text().replace('strategy = "ilp"', 'strategy = "mine_of_luck:Lucky"')
    )
    if "mine_of_luck" not in text:
        text = text.replace("[search]", '[search]\nstrategy = "mine_of_luck:Lucky"')
    (tmp_path / "mine.toml").write_text(text.replace("max_trials = 8", "max_trials = 3"))
    yield tmp_path
    STRATEGIES.pop("mine_of_luck:Lucky", None)
    sys.modules.pop("mine_of_luck", None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


def test_a_class_in_the_users_file_searches(place):
    out = place / "run"
    done = CliRunner().invoke(
        app, ["search", str(place / "mine.toml"), "--out", str(out), "--set", "search.options.tries=5"]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    trials = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()[1:]]
    assert sum(trial["source"] == "mine_of_luck:Lucky" for trial in trials) == 3
    assert (out / "report.html").exists()
    check_strategy(STRATEGIES["mine_of_luck:Lucky"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.strategy='mine_of_luck:Nothing'", "is no haq.SearchStrategy"),
        ("search.strategy='mine_of_luck:Missing'", "has no 'Missing'"),
        ("search.strategy='nowhere:Lucky'", "put the module beside the experiment file"),
        ("search.strategy='lucky'", "unknown; known: .*ilp.*or your own module:Class"),
        ("search.options.tries='x'", r"search\.options\.tries"),
    ],
)
def test_what_is_no_strategy_is_one_line(place, override, message):
    with pytest.raises(InputError, match=message):
        Experiment.load(place / "mine.toml", overrides=[override]).check()


def test_a_run_of_it_from_a_stranger_runs_nothing(place):
    Experiment.load(place / "mine.toml").check()
    (place / "policy.json").write_text(
        json.dumps({"provenance": {"config": Experiment.load(place / "mine.toml").config.model_dump(mode="json")}})
    )
    with pytest.raises(InputError, match=r"search\.strategy = 'mine_of_luck:Lucky'"):
        Experiment.stored(place / "policy.json")


def _points(monkeypatch, **named):
    def entry_points(*, group, name):
        return [EntryPoint(name, value, group) for key, value in named.items() if key == name]

    monkeypatch.setattr(plugins, "entry_points", entry_points)


def test_entry_points_of_packages_are_found_by_name(monkeypatch):
    _points(monkeypatch, packaged="haq.search:RandomSearch", wrong="haq.search:run_search", broken="no_such_module:X")
    registry = {}
    add_plugin(registry, "packaged", group="haq.strategies", wanted=SearchStrategy)
    assert registry["packaged"] is STRATEGIES["random"]
    add_plugin(registry, "unknown", group="haq.strategies", wanted=SearchStrategy)
    assert list(registry) == ["packaged"]
    with pytest.raises(InputError, match="expected a SearchStrategy"):
        add_plugin(registry, "wrong", group="haq.strategies", wanted=SearchStrategy)
    with pytest.raises(InputError, match="importing it failed"):
        add_plugin(registry, "broken", group="haq.strategies", wanted=SearchStrategy)


def test_a_packages_cost_model_reads_a_profile(monkeypatch):
    _points(monkeypatch, mine="haq.hardware:ProfileCostModel")
    try:
        document = {"schema_version": 1, "name": "mine", "title": "Mine", "kind": "mine"}
        with pytest.raises(InputError) as caught:
            parse_profile(document)
        assert "unknown kind" not in str(caught.value)  # the kind is known now; the rest of the profile is missing
        assert COST_MODELS["mine"] is ProfileCostModel
    finally:
        COST_MODELS.pop("mine", None)
