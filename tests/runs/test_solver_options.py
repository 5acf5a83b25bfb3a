"""`search.options.gap`, `time_limit` and `solver` reach every solve of a run, whatever the strategy."""

from pathlib import Path

import pytest

from haq import Experiment, run_experiment
from haq.search import STRATEGIES, check_options
from haq.solve import infeasible, solve
from haq.values.errors import InputError

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
FAST = ["search.max_trials=1", "sensitivity.samples=32", "evaluator.samples=32", "sensitivity.metric=sqnr"]


@pytest.fixture
def solves(monkeypatch):
    """The options of each call of the solver, wherever it is called from."""
    seen = []

    def spy(problem, **options):
        seen.append(options)
        return solve.solve(problem, **options)

    for module in (
        "haq.runs.search",
        "haq.runs.result",
        "haq.search.strategies.ilp",
        "haq.search.strategies.adaptive_ilp",
        "haq.search.strategies.accuracy_drop",
    ):
        monkeypatch.setattr(f"{module}.solve", spy)
    return seen


@pytest.mark.parametrize("strategy", ["ilp", "greedy", "random", "adaptive_ilp"])
def test_the_options_reach_every_solve(solves, strategy, tmp_path):
    options = ["search.options.gap=0.25", "search.options.time_limit=1.5", "search.options.solver=cbc"]
    experiment = Experiment.load(QUICKSTART, overrides=[*FAST, f"search.strategy={strategy}", *options])
    run_experiment(experiment, out=tmp_path / "run")
    assert len(solves) > 2
    assert {entry["gap"] for entry in solves} == {0.25}
    assert {entry["time_limit"] for entry in solves} == {1.5}
    assert {entry["solver"] for entry in solves} == {"cbc"}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_has_them(name):
    check_options(STRATEGIES[name], {"gap": 0.1, "time_limit": 2.0, "solver": "highs"})
    with pytest.raises(InputError, match=r"search\.options\.gap = -1"):
        check_options(STRATEGIES[name], {"gap": -1.0})


def test_the_message_of_an_infeasible_run_names_device_and_remedy():
    experiment = Experiment.load(QUICKSTART, overrides=["budgets.size_bytes='0.1%'"])
    error = infeasible.infeasible(experiment.problem(None), device=experiment.profile.name)
    assert str(error).startswith(f"no policy meets the budgets on {experiment.profile.name}; least achievable")
    assert set(error.minimum) == set(experiment.budgets)
