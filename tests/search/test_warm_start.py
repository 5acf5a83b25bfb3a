from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toys import additive, first_trials, named, resumed, tied_problem

from haq.experiment.experiment import Experiment
from haq.problem.problem import Problem
from haq.runs.search import build_strategy
from haq.search import ILP, STRATEGIES, AccuracyDropSearch, Greedy, RandomSearch, check_options, make_strategy
from haq.testing import TOYS, chain_document, check_strategy
from haq.values.errors import InputError

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"


@pytest.mark.parametrize("name", STRATEGIES)
def test_any_strategy_begins_with_those_of_others_and_conforms(name: str) -> None:
    options = {"warm_start": ["greedy", "evolutionary"], "warm_start_policies": 2}
    check_strategy(named(name, **options), reaches_optimum=False)


@pytest.mark.parametrize("source", STRATEGIES)
def test_policies_of_any_strategy_come_first(source: str) -> None:
    problem = Problem.from_doc(chain_document(5, bits=(2, 4, 8)))
    options = {"warm_start": source, "warm_start_policies": 3}
    model = partial(additive, problem)
    expected = make_strategy(source, problem, seed=4, model=model).suggest(3)
    strategy = make_strategy("random", problem, seed=4, options=options, model=model)
    assert strategy.suggest(len(expected)) == expected
    assert not set(strategy.suggest(20)) & set(expected)


def test_sources_come_in_the_order_of_the_list_and_no_policy_twice() -> None:
    problem = TOYS["knapsack"].problem
    options = {"warm_start": ["greedy", "ilp"], "warm_start_policies": 2}
    proposed = make_strategy("random", problem, options=options).suggest(9)
    expected = list(dict.fromkeys([*Greedy(problem).suggest(2), *ILP(problem).suggest(2)]))
    assert proposed[: len(expected)] == expected
    assert len(set(proposed)) == len(proposed)


@pytest.mark.parametrize("variant", ["published", "modern"])
def test_only_the_modern_actor_critic_begins_with_the_integer_program_unasked(variant: str) -> None:
    problem = Problem.from_doc(chain_document(6, bits=(2, 4, 8)))
    proposed = make_strategy("actor_critic", problem, options={"variant": variant}).suggest(4)
    assert (proposed == ILP(problem).suggest(4)) == (variant == "modern")


def test_what_came_first_is_learned_from() -> None:
    """The best policy is the only parent, so the first child is a mutation of it: two switches away at most."""
    problem = Problem.from_doc(chain_document(8, bits=(2, 4, 8)))
    options = {"population": 1, "crossover_rate": 0.0, "mutation_rate": 0.0, "warm_start": "ilp"}
    best, child = (
        problem.assignment(entry.policy)
        for entry in first_trials(problem, lambda p, seed: make_strategy("evolutionary", p, options=options), 2)
    )
    assert 0 < (best != child).sum() <= 2


def test_a_warm_started_search_resumes_at_every_trial() -> None:
    problem = tied_problem()
    factory = named("evolutionary", warm_start="ilp", warm_start_policies=3)
    played = first_trials(problem, factory, 12)
    assert resumed(problem, factory, played) == [[entry.policy] for entry in played]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warm_start": 3}, r"search\.options\.warm_start = 3: input should be a valid string"),
        ({"warm_start": "ilp", "warm_start_policies": 0}, r"warm_start_policies = 0: input should be greater than or"),
        ({"warm_start_policies": 2}, r"warm_start_policies: needs warm_start"),
        ({"warm_start": "ipl"}, r"warm_start = 'ipl': no strategy \(ilp, .*\), no policy file or run folder"),
    ],
    ids=["type", "none", "no-source", "unknown"],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    overrides = ["search.strategy=random", f"search.options={_inline(options)}"]
    with pytest.raises(InputError, match=message):
        Experiment.load(QUICKSTART, overrides=overrides).check()


def _inline(options: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items()) + "}"


def test_the_bisection_takes_no_warm_start() -> None:
    with pytest.raises(InputError, match=r"search\.options\.warm_start: no option of AccuracyDropSearch"):
        check_options(AccuracyDropSearch, {"warm_start": "ilp"})


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment.load(QUICKSTART, overrides=["search.strategy=random"])


def test_a_policy_file_comes_first_brought_within_the_budgets(experiment: Experiment, tmp_path: Path) -> None:
    wide = experiment.reference_policy
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(wide.to_doc()))
    problem = experiment.problem(None)
    assert problem.violation(wide)
    assert _from(experiment, problem, str(file)).suggest(1) == [problem.repair(wide)]


def _from(experiment: Experiment, problem: Problem, source: str, count: int = 1) -> Any:
    options = {"warm_start": source, "warm_start_policies": count}
    config = experiment.config.model_copy(
        update={"search": experiment.config.search.model_copy(update={"options": options})}
    )
    return build_strategy(experiment.at(config), problem, floor=None)


def test_a_run_gives_its_best_policies(experiment: Experiment, tmp_path: Path) -> None:
    problem = experiment.problem(None)
    policies = RandomSearch(problem, seed=1).suggest(4)
    scores = [3.0, 9.0, 5.0, 7.0]
    lines = [{"schema_version": 1, "setup": {}}]
    for number, (policy, score) in enumerate(zip(policies, scores, strict=True)):
        measurement = {"score": score, "fidelity": "ptq", "seconds": 0.0, "details": {}}
        trial = {"number": number, "source": "random", "policy": policy.to_doc(), "costs": problem.costs(policy)}
        lines.append({**trial, "measurement": measurement})
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert _from(experiment, problem, str(tmp_path), 3).suggest(3) == [policies[1], policies[3], policies[2]]
