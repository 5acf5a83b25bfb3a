from __future__ import annotations

import builtins
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toys import benchmark, first_trials, resumed, tied_problem, trial

from haq.problem.problem import Problem
from haq.search import ILP, Bayesian, check_options
from haq.search.strategies.bayesian_parameters import Parameters
from haq.testing import TOYS, chain_document, check_strategy, play
from haq.values.errors import InfeasibleError, InputError

optuna = pytest.importorskip("optuna")


@pytest.mark.parametrize(
    "options",
    [{}, {"ordinal": False}, {"sampler": "nsga2", "startup": 3}],
    ids=["tpe", "categories", "nsga2"],
)
def test_it_passes_the_conformance_checks(options: dict[str, Any]) -> None:
    check_strategy(partial(Bayesian, **options), trials=21)


@pytest.mark.slow
def test_gp_passes_the_conformance_checks() -> None:
    check_strategy(partial(Bayesian, sampler="gp", startup=4), trials=21)


def test_gp_proposes_within_budget_once_it_has_a_model() -> None:
    problem = tied_problem()
    played = play(problem, Bayesian(problem, seed=0, sampler="gp", startup=2), trials=5)
    assert len({entry.policy for entry in played}) == 5
    assert not any(problem.violation(entry.policy) for entry in played)


@pytest.mark.parametrize(
    ("options", "seeds"),
    [
        ({"ordinal": False}, 20),
        pytest.param({}, 20, marks=pytest.mark.slow),
        pytest.param({"sampler": "nsga2"}, 20, marks=pytest.mark.slow),
    ],
    ids=["tpe-categories", "tpe", "nsga2"],
)
def test_it_beats_random_search_on_a_hidden_score(options: dict[str, Any], seeds: int) -> None:
    toys = benchmark()
    ours = toys.regrets("bayesian", options, seeds=seeds, evaluations=100)[:, -1]
    random = toys.regrets("random", {}, seeds=seeds, evaluations=100)[:, -1]
    assert toys.smaller(ours, random) < 0.01


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_it_resumes_at_every_trial(sampler: str) -> None:
    problem = Problem.from_doc(chain_document(5, bits=(2, 4, 8)))
    factory = partial(Bayesian, sampler=sampler, startup=4)
    played = first_trials(problem, factory, 30)
    assert resumed(problem, factory, played) == [[entry.policy] for entry in played]


def test_tied_layers_stay_tied() -> None:
    problem = tied_problem()
    policies = [entry.policy for entry in play(problem, Bayesian(problem, seed=1, startup=4), trials=25, count=3)]
    assert all(policy["a"] == policy["b"] for policy in policies)
    assert all(policy["c"].activation == policy["d"].activation for policy in policies)
    assert not any(problem.violation(policy) for policy in policies)


def test_weights_and_activations_are_parameters_of_their_own_and_ties_share_them() -> None:
    parameters = Parameters(tied_problem())
    assert parameters.axes == {
        "a weight": ("int2", "int8"),
        "a activation": ("int4", "int8"),
        "c weight": ("int2", "int8"),
        "c activation (tied)": ("int4", "int8"),
        "d weight": ("int2", "int8"),
    }
    assert parameters.ordered == set(parameters.axes)


def test_choices_that_are_no_product_are_one_category() -> None:
    doc = chain_document(2, bits=(2, 8), share=1.0)
    doc["layers"][0]["choices"].pop(1)
    doc["edges"] = []
    parameters = Parameters(Problem.from_doc(doc))
    assert parameters.axes["layer0"] == ("0: w2a2", "1: w8a2", "2: w8a8")
    assert parameters.ordered == {"layer1 weight", "layer1 activation"}


@pytest.mark.parametrize("problem", [tied_problem(), *(toy.problem for toy in TOYS.values())])
def test_parameters_name_every_assignment(problem: Problem) -> None:
    parameters = Parameters(problem)
    for entry in ILP(problem).suggest(50):
        row = problem.assignment(entry)
        assert parameters.assignment(parameters.positions(row)).tolist() == row.tolist()


def test_the_study_is_mirrored_as_repaired_with_its_constraints(tmp_path: Path) -> None:
    problem, url = tied_problem(), f"sqlite:///{tmp_path / 'study.db'}"
    factory = partial(Bayesian, problem, seed=0, startup=3, optuna_storage=url, optuna_study="mine", ordinal=False)
    played = play(problem, factory(), trials=6)
    study = optuna.load_study(study_name="mine", storage=url)
    assert [entry.value for entry in study.trials] == [entry.measurement.score for entry in played]
    for mirrored, entry in zip(study.trials, played, strict=True):
        assert mirrored.params["a weight"] == entry.policy["a"].weight.name == entry.policy["b"].weight.name
        assert mirrored.params["c activation (tied)"] == entry.policy["d"].activation.name
        assert mirrored.user_attrs["ms"] == entry.costs["ms"]
        assert mirrored.constraints["ms"] == pytest.approx(entry.costs["ms"] / 130.0 - 1.0)


def test_a_resumed_run_does_not_mirror_twice(tmp_path: Path) -> None:
    problem, url = tied_problem(), f"sqlite:///{tmp_path / 'study.db'}"
    played = play(problem, Bayesian(problem, optuna_storage=url), trials=3)
    resumed_strategy = Bayesian(problem, optuna_storage=url)
    resumed_strategy.update(played)
    play(problem, resumed_strategy, trials=2, first=3)
    (name,) = optuna.get_all_study_names(url)
    assert len(optuna.load_study(study_name=name, storage=url).trials) == 5


def test_a_storage_that_cannot_be_opened_is_named() -> None:
    with pytest.raises(
        InputError, match=r"search\.options\.optuna_storage = 'nowhere': cannot be opened: .*sqlite:///"
    ):
        Bayesian(tied_problem(), optuna_storage="nowhere")


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_further_objectives_make_a_front(sampler: str, tmp_path: Path) -> None:
    problem, url = tied_problem(), f"sqlite:///{tmp_path / 'study.db'}"
    options: dict[str, Any] = {"sampler": sampler, "startup": 4, "objectives": ["ms"], "optuna_storage": url}
    played = play(problem, Bayesian(problem, seed=0, optuna_study="front", **options), trials=12)
    study = optuna.load_study(study_name="front", storage=url)
    points = {(entry.measurement.score, entry.costs["ms"]) for entry in played}
    front = {(s, c) for s, c in points if not any(x >= s and y <= c and (x, y) != (s, c) for x, y in points)}
    assert {tuple(entry.values) for entry in study.best_trials} == front


def test_an_unknown_objective_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"objectives: unknown metric 'joule'; the problem prices ms, bytes"):
        Bayesian(tied_problem(), objectives=["joule"])


def test_failed_policies_are_not_learned_nor_proposed_again(tmp_path: Path) -> None:
    problem, url = tied_problem(), f"sqlite:///{tmp_path / 'study.db'}"
    strategy = Bayesian(problem, optuna_storage=url, optuna_study="failed")
    (policy,) = strategy.suggest(1)
    strategy.update([trial(problem, policy, 0, float("nan"))])
    later = play(problem, strategy, trials=50)
    assert policy not in [entry.policy for entry in later]
    assert len(optuna.load_study(study_name="failed", storage=url).trials) == len(later)


def test_nothing_within_budget_says_what_is_achievable() -> None:
    problem = TOYS["knapsack"].problem.with_budgets({"latency_ms": 2.5})
    with pytest.raises(InfeasibleError, match=r"latency_ms 3 \(budget 2\.5\)"):
        Bayesian(problem).suggest(1)


def test_without_optuna_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"needs Optuna: pip install 'haq\[bayesian\]'"):
        Bayesian(tied_problem())


def test_the_package_imports_without_optuna() -> None:
    code = "import haq.search, sys; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_options_are_checked() -> None:
    check_options(Bayesian, {"sampler": "gp", "objectives": ["ms"], "startup": 5, "ordinal": False})
    with pytest.raises(InputError, match=r"search\.options\.sampler = 'cmaes': input should be 'tpe', 'gp' or 'nsga2'"):
        check_options(Bayesian, {"sampler": "cmaes"})
