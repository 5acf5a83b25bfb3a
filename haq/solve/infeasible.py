"""The one message for "no policy meets the budgets"."""

from __future__ import annotations

from haq.problem.problem import Problem
from haq.solve.solve import minima
from haq.values.errors import InfeasibleError


def infeasible(problem: Problem) -> InfeasibleError:
    """The error that says what the budgets would have to be at least."""
    least = minima(problem)
    shown = ", ".join(f"{metric} {value:g} (budget {problem.budgets[metric]:g})" for metric, value in least.items())
    return InfeasibleError(f"no policy meets the budgets; least achievable, each alone: {shown}", least)
