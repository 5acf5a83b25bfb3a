"""The proof that comes with "no policy meets the budgets": what each would have to be at least."""

from __future__ import annotations

from haq.problem.problem import Problem
from haq.solve.settings import SolverSettings
from haq.solve.solve import minima
from haq.values.errors import InfeasibleError

_PLAIN = SolverSettings()


def infeasible(problem: Problem, solving: SolverSettings = _PLAIN, *, device: str = "") -> InfeasibleError:
    """The error that says what the budgets would have to be at least.

    Args:
        problem: that has no policy within budget.
        solving: how to solve for the least values.
        device: its name, for the message.
    """
    return InfeasibleError.of(minima(problem, **solving.without_gap), problem.budgets, device=device)
