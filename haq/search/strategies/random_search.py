"""Random search: seeded draws, brought within budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from haq.problem.problem import Problem
from haq.problem.ties import cheapest
from haq.search.strategy import SearchStrategy
from haq.solve.solve import list_assignments
from haq.values.policy import Policy
from haq.values.trial import Trial

_REPEATS = 100
"""After so many draws in a row that gave nothing new, what is left of a small space is listed."""


class RandomSearch(SearchStrategy):
    """Draws a choice for every group at random and repairs what is over budget; no policy comes twice.

    The draws form one sequence, fixed by the seed, of which `suggest` gives the first ones not seen yet: a resumed
    search goes on where the killed one stopped.

    Args:
        problem: tables, budgets and objective.
        seed: fixes the sequence.
    """

    def __init__(self, problem: Problem, *, seed: int = 0) -> None:
        self._problem, self._seed = problem, seed
        self._source = self._sequence()
        self._drawn: list[Policy] = []
        self._seen: set[str] = set()

    def suggest(self, count: int) -> list[Policy]:
        """The next policies of the sequence; none when a finite space is used up.

        Raises:
            InfeasibleError: no policy within budget was found.
        """
        fresh = [policy for policy in self._drawn if policy.key not in self._seen]
        while len(fresh) < count and (policy := next(self._source, None)) is not None:
            self._drawn.append(policy)
            if policy.key not in self._seen:
                fresh.append(policy)
        self._seen.update(policy.key for policy in fresh[:count])
        return fresh[:count]

    def update(self, trials: Sequence[Trial]) -> None:
        """Never propose these again."""
        self._seen.update(trial.policy.key for trial in trials)

    def _sequence(self) -> Iterator[Policy]:
        problem, tables = self._problem, self._problem.tables
        rng = np.random.default_rng(self._seed)
        drawn: set[str] = set()
        repeats = 0
        while repeats < _REPEATS:
            wish = cheapest(tables, rng.random(tables.start[-1]))
            policy = problem.repair(problem.policy(wish))
            repeats = repeats + 1 if policy.key in drawn else 0
            if not repeats:
                drawn.add(policy.key)
                yield policy
        listed = list_assignments(problem, tables.allowed)
        if listed is None:
            return
        for row in rng.permutation(listed[problem.within(listed)]):
            policy = problem.policy(row)
            if policy.key not in drawn:
                yield policy
