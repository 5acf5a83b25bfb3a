"""Least cost at a bounded accuracy drop: bisection on the predicted loss, with real measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence

from haq.problem.problem import Problem
from haq.search.strategy import SearchStrategy
from haq.solve.settings import Gap, Seconds, Solver
from haq.solve.solve import solve
from haq.values.policy import Policy
from haq.values.trial import Trial

_SMALLEST_RATIO = 1.02
_WIDEST_RATIO = 1e6


class AccuracyDropSearch(SearchStrategy):
    """Finds, in the logarithm, the largest predicted loss whose cheapest policy still reaches the floor.

    The bisection is replayed from its start at each `suggest`, from the measurements alone (the solutions are kept):
    what it proposes next does not depend on how it came by them.

    Args:
        problem: its objective is the cost to minimise; its budgets hold as well.
        floor: the least score that is allowed.
        gap: relative gap at which a solve may stop.
        time_limit: seconds for each solve.
        solver: `auto`, `highs` or `cbc`.
    """

    warm_startable = False

    def __init__(
        self,
        problem: Problem,
        *,
        floor: float,
        gap: Gap = 0.0,
        time_limit: Seconds | None = None,
        solver: Solver = "auto",
    ) -> None:
        self._problem, self._floor = problem, floor
        self._gap, self._time_limit, self._solver = gap, time_limit, solver
        self._scores: dict[str, float] = {}
        self._open: set[str] = set()
        self._solved: dict[float, Policy | None] = {}
        self._low, self._high = self._range()

    def _range(self) -> tuple[float, float]:
        """Predicted losses of the best policy there is, and of the cheapest."""
        best = self._solve(math.inf, objective="sensitivity")
        cheapest = self._solve(math.inf, objective=self._problem.objective)
        if best is None or cheapest is None:
            return 0.0, 0.0
        low, high = (max(self._problem.costs(policy)["sensitivity"], 0.0) for policy in (best, cheapest))
        return max(low, high / _WIDEST_RATIO), high

    def _solve(self, loss: float, *, objective: str) -> Policy | None:
        budgets = dict(self._problem.budgets)
        bound = min(loss, budgets.get("sensitivity", math.inf))
        if math.isfinite(bound):
            budgets["sensitivity"] = bound
        problem = self._problem.with_budgets(budgets, objective=objective)
        solution = solve(problem, gap=self._gap, time_limit=self._time_limit, solver=self._solver)
        return problem.policy(solution.assignments[0]) if solution.assignments else None

    def _cheapest(self, loss: float) -> Policy | None:
        if loss not in self._solved:
            self._solved[loss] = self._solve(loss, objective=self._problem.objective)
        return self._solved[loss]

    def suggest(self, count: int) -> list[Policy]:
        """The cheapest policy at the next predicted loss; nothing when the bracket holds no other policy.

        Nothing either while that policy is being measured: the next one depends on it.
        """
        low, high, loss = self._low, self._high, self._high
        while True:
            policy = self._cheapest(loss)
            if policy is not None and policy.key not in self._scores:
                new = policy.key not in self._open
                self._open.add(policy.key)
                return [policy] if new else []
            if policy is None or self._scores[policy.key] >= self._floor:
                low = loss
            else:
                high = loss
            if high <= low * _SMALLEST_RATIO:
                return []
            loss = math.sqrt(low * high)

    def update(self, trials: Sequence[Trial]) -> None:
        """Take in what was measured; a failed policy counts as below the floor."""
        for trial in trials:
            self._scores[trial.policy.key] = trial.measurement.score if trial.measurement.ok else -math.inf
