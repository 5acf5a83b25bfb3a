"""Which of the measured policies is the answer."""

from __future__ import annotations

from collections.abc import Sequence

from haq.problem.problem import Problem
from haq.search.surrogate import denoised
from haq.values.trial import Trial


def choose(trials: Sequence[Trial], problem: Problem, *, floor: float | None, fitted: bool = False) -> Trial | None:
    """The best of the measured trials that are within budget; `None` where there is none.

    When the objective is the predicted loss: the best score. When it is a cost: the least cost among the trials that
    score at least `floor` (all, without one); where none does, the best score. Ties go to the smaller objective, then
    to the earlier trial.

    Args:
        trials: of any source.
        problem: its objective and budgets.
        floor: the least score that is allowed, `None` for any.
        fitted: when the objective is the predicted loss, the least loss by the fit to all that was measured
            (`haq.search.surrogate.denoised`) in place of the best score.
    """
    usable = [trial for trial in trials if trial.measurement.ok and not problem.violation(trial.policy)]
    reaching = [trial for trial in usable if floor is None or trial.measurement.score >= floor]
    if problem.objective != "sensitivity" and reaching:
        return min(reaching, key=lambda t: (t.costs[problem.objective], -t.measurement.score, t.number))
    if fitted and usable:
        return min(zip(denoised(problem, usable), usable, strict=True), key=lambda p: (p[0], p[1].number))[1]
    return min(usable, key=lambda t: (-t.measurement.score, t.costs[problem.objective], t.number), default=None)
