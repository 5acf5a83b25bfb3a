"""The uniform baseline: the same precision everywhere, as far as the layers allow it."""

from __future__ import annotations

from collections.abc import Sequence

from haq.problem.problem import Problem
from haq.search.strategy import SearchStrategy
from haq.values.policy import Policy
from haq.values.trial import Trial


def uniform_policies(problem: Problem) -> list[Policy]:
    """For each precision that any layer may take: every layer takes it, or the nearest choice that it has.

    The nearest choice lacks the fewest bits and, among those that lack none, has the fewest to spare. Policies over
    budget are among them; the best by the objective comes first.
    """
    precisions = {precision for layer in problem.layers for precision in problem.choices(layer)}
    policies = {problem.nearest(Policy.uniform(problem.layers, precision)) for precision in precisions}
    return sorted(policies, key=lambda policy: (problem.objective_value(policy), policy.key))


class Uniform(SearchStrategy):
    """The uniform policies within budget, the best by the objective first.

    Args:
        problem: tables, budgets and objective.
        seed: not needed; every strategy takes one.
    """

    def __init__(self, problem: Problem, *, seed: int = 0) -> None:
        del seed
        self._policies = [policy for policy in uniform_policies(problem) if not problem.violation(policy)]
        self._seen: set[str] = set()

    def suggest(self, count: int) -> list[Policy]:
        """The next best uniform policies; none when all within budget were proposed or measured."""
        result = [policy for policy in self._policies if policy.key not in self._seen][:count]
        self._seen.update(policy.key for policy in result)
        return result

    def update(self, trials: Sequence[Trial]) -> None:
        """Never propose these again."""
        self._seen.update(trial.policy.key for trial in trials)
