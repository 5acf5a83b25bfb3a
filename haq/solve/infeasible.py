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
    minimum = minima(problem, **solving.without_gap)
    error = InfeasibleError.of(minimum, problem.budgets, device=device)
    fixed = {metric: value for metric, value in problem.tables.offsets.items() if metric in minimum and value}
    if not fixed:
        return error
    shown = ", ".join(f"{metric} {value:.6g}" for metric, value in fixed.items())
    return InfeasibleError(f"{error}; of that, under every policy, for what stays in float: {shown}", minimum)
