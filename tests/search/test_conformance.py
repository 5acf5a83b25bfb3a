"""What every strategy must do, beside `haq.testing.check_strategy`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reference import price
from toys import first_trials, named, resumed, tied_problem

from haq.problem.problem import Problem
from haq.search import STRATEGIES, run_search
from haq.search.journal import Journal
from haq.testing import chain_document
from haq.values.policy import Policy
from haq.values.trial import Measurement

every_strategy = pytest.mark.parametrize("name", STRATEGIES)


@every_strategy
def test_replay_of_the_first_trials_gives_the_same_next_proposal(name: str) -> None:
    problem = Problem.from_doc(chain_document(4, bits=(2, 4, 8)))
    played = first_trials(problem, named(name), 30)
    assert resumed(problem, named(name), played) == [[entry.policy] for entry in played]


@every_strategy
def test_ties_and_budgets_hold_to_the_last_bit(name: str) -> None:
    problem = tied_problem()
    document: dict[str, Any] = problem.to_doc()
    played = first_trials(problem, named(name), 30)
    assert played
    for policy in (entry.policy for entry in played):
        assert policy["a"] == policy["b"]
        assert policy["c"].activation == policy["d"].activation
        costs = price(document, {layer: problem.choices(layer).index(policy[layer]) for layer in problem.layers})
        assert all(costs[metric] <= bound for metric, bound in document["budgets"].items())


@every_strategy
def test_a_space_of_one_policy_ends_after_it(name: str) -> None:
    choice = {"weight_bits": 4, "activation_bits": 8, "sensitivity": 1.0, "costs": {"ms": 1.0}}
    layers = [{"name": layer, "choices": [choice]} for layer in "ab"]
    document = {"schema_version": 1, "layers": layers, "budgets": {"ms": 2.0}, "objective": "sensitivity"}
    problem = Problem.from_doc(document)
    assert len(first_trials(problem, named(name), 30)) == 1


class Killed(Exception):
    """Stands for the end of the process."""


class Dying:
    """Scores by the predicted loss, and is killed after so many policies."""

    capacity = 1

    def __init__(self, problem: Problem, lives: int) -> None:
        self._problem, self._lives = problem, lives

    def submit(self, policy: Policy) -> None:
        self._policy = policy

    def next_completed(self) -> tuple[Policy, Measurement]:
        if not self._lives:
            raise Killed
        self._lives -= 1
        return self._policy, Measurement(-self._problem.objective_value(self._policy), "toy")

    def finished(self) -> list[tuple[Policy, Measurement]]:
        return []

    def close(self) -> None: ...


@every_strategy
def test_a_search_killed_after_each_of_30_trials_ends_like_one_that_was_not(name: str, tmp_path: Path) -> None:
    """One search, killed after every single trial and resumed from its journal, 30 times."""
    problem = Problem.from_doc(chain_document(4, bits=(2, 4, 8)))
    path = tmp_path / "trials.jsonl"
    for resume in range(31):
        with Journal.open(path, {}, resume=resume > 0) as journal:
            strategy = named(name)(problem, seed=3)
            try:
                run_search(problem, strategy, Dying(problem, 1), name=name, max_trials=30, journal=journal)
            except Killed:
                continue
            break
    with Journal.resume(path, {}) as journal:
        ended = [trial.policy for trial in journal.trials]
    assert ended == [trial.policy for trial in first_trials(problem, named(name), 30)]
