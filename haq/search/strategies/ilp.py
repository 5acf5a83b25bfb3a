"""The exact search: the best policy by the tables, then the next best, and so on."""

from __future__ import annotations

from collections.abc import Sequence

from haq.problem.problem import Problem
from haq.search.strategy import SearchStrategy
from haq.solve.infeasible import infeasible
from haq.solve.settings import Gap, Seconds, Solver, SolverSettings
from haq.solve.solve import solve
from haq.values.policy import Policy
from haq.values.trial import Trial


class ILP(SearchStrategy):
    """Solves the problem by integer programming and proposes its policies in the order of the objective.

    Args:
        problem: tables, budgets and objective.
        seed: not needed; every strategy takes one.
        time_limit: seconds for each solve; the best found by then is proposed.
        gap: relative gap to the optimum at which a solve may stop.
        solver: `auto`, `highs` or `cbc`.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        time_limit: Seconds | None = None,
        gap: Gap = 0.0,
        solver: Solver = "auto",
    ) -> None:
        del seed
        self._problem = problem
        self._time_limit, self._gap, self._solver = time_limit, gap, solver
        self._seen: set[bytes] = set()

    def suggest(self, count: int) -> list[Policy]:
        """The best policies that were not proposed or measured yet; none when all within budget were.

        Raises:
            InfeasibleError: nothing is within budget.
        """
        solution = solve(
            self._problem,
            top=count,
            gap=self._gap,
            time_limit=self._time_limit,
            solver=self._solver,
            excluded=frozenset(self._seen),
        )
        if solution.status == "infeasible" and not self._seen:
            raise infeasible(self._problem, SolverSettings(self._gap, self._time_limit, self._solver))
        self._seen.update(assignment.tobytes() for assignment in solution.assignments)
        return [self._problem.policy(assignment) for assignment in solution.assignments]

    def update(self, trials: Sequence[Trial]) -> None:
        """Never propose these again."""
        self._seen.update(self._problem.assignment(trial.policy).tobytes() for trial in trials)
