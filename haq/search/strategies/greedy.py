"""The greedy baseline: from the best policy into the budgets by the cheapest steps, then through what is left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from haq.problem.moves import Neighbourhood, descend, improve
from haq.problem.problem import Problem
from haq.problem.tables import Ints
from haq.problem.ties import cheapest
from haq.search.strategy import SearchStrategy
from haq.values.policy import Policy
from haq.values.trial import Trial


class Greedy(SearchStrategy):
    """One policy: the best without budgets, changed one group at a time.

    While over budget it takes the step of least objective per part of a budget regained; then it takes the step that
    lowers the objective most and stays within budget, until there is none.

    Args:
        problem: tables, budgets and objective.
        seed: not needed; every strategy takes one.
    """

    def __init__(self, problem: Problem, *, seed: int = 0) -> None:
        del seed
        self._problem = problem
        self._seen: set[str] = set()

    def suggest(self, count: int) -> list[Policy]:
        """The greedy policy, once.

        Raises:
            InfeasibleError: it found no policy within budget.
        """
        policy = greedy_policy(self._problem)
        if count < 1 or policy.key in self._seen:
            return []
        self._seen.add(policy.key)
        return [policy]

    def update(self, trials: Sequence[Trial]) -> None:
        """Never propose these again."""
        self._seen.update(trial.policy.key for trial in trials)


def greedy_policy(problem: Problem) -> Policy:
    """The policy of `Greedy`.

    Raises:
        InfeasibleError: it found no policy within budget.
    """
    assignment, over = descend(problem.near, _unbounded(problem))
    if over > 0:
        assignment = problem.assignment(problem.repair(problem.policy(assignment)))
    return problem.policy(improve(problem.near, assignment))


def _unbounded(problem: Problem) -> Ints:
    """The best assignment without budgets that single steps reach."""
    tables = problem.tables
    start = cheapest(tables, tables.unary.get(problem.objective, np.zeros(tables.start[-1])))
    return improve(Neighbourhood(tables, objective=problem.objective, budgets={}), start)
