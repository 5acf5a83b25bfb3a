"""The integer program again and again: the best policy, and with what was found excluded, the next best."""

from __future__ import annotations

import time

import numpy as np

from haq.problem.document import PEAK
from haq.problem.problem import Problem
from haq.problem.tables import Bools, Ints
from haq.solve.integer_program import SLIP, Answer, Model
from haq.solve.pool import Pool, Status

_SLIPS = 10
"""So many answers over budget by less than the solver's tolerance are excluded one by one; if there are more
(identical layers, a bound that misses a sum by its rounding), budgets get a margin and nothing is proven."""
_FINE = 1e-7
"""A program is scaled again if it does not tell policies apart that differ by more than this part of the value, ..."""
_FINER = 0.1
"""... and if that makes it so much finer at least."""
_OPTIMAL = 1e-6
"""Policies are called optimal only where better ones by this part of the value would have been told apart."""


class Enumeration:
    """Fills a pool by an integer program over some choices, scaled anew for the value that is looked for.

    Args:
        problem: tables, budgets and objective.
        pool: takes in what is found; what it excludes is excluded.
        allowed: variables that may be chosen, `[V]`; at least one per group.
        solver: `highs` or `cbc`.
        gap: relative; each solve stops once it is proven.
        deadline: of `time.perf_counter`.
    """

    def __init__(
        self, problem: Problem, pool: Pool, allowed: Bools, *, solver: str, gap: float, deadline: float
    ) -> None:
        self._problem, self._pool, self._allowed = problem, pool, allowed
        self._solver, self._gap, self._deadline = solver, gap, deadline
        self._excluded: list[Ints] = [np.frombuffer(key, dtype=np.int64) for key in pool.excluded]
        self._slips, self._margin = 0, 0.0
        self._model = self._build(np.inf)

    def run(self, bound: float) -> tuple[Status, float]:
        """Solve, exclude what was found, and again until the pool is full or nothing is left.

        Args:
            bound: no policy is better, as far as known before.
        """
        pool = self._pool
        proven, fine, found = True, True, 0
        while found < pool.keep:
            answer = self._next(found)
            genuine = self._take(answer)
            found += genuine
            if self._slips < _SLIPS and found <= 1 and (answer.assignment is None or found == 1):
                bound = max(bound, min(answer.bound, pool.best))
            if not answer.proven:
                proven = False
                break
            if answer.assignment is None:
                break
            fine &= not genuine or self._told_apart(found)
        proven = proven and self._slips < _SLIPS
        if proven and fine and self._gap == 0.0:
            return ("optimal" if pool.found else "infeasible"), bound
        if not pool.found:
            return "unknown", bound
        if not fine:
            bound = min(bound, pool.best - self._model.precision)
        close = pool.best - bound <= 1e-9 * abs(pool.best)
        return ("optimal" if close and (proven or pool.keep == 1) else "feasible"), bound

    def _build(self, cutoff: float) -> Model:
        model = Model(self._problem, self._allowed, margin=self._margin, cutoff=cutoff)
        for assignment in self._excluded:
            model.exclude(assignment)
        return model

    def _next(self, found: int) -> Answer:
        """What the solver says is the best that is not excluded, told apart as finely as its value needs."""
        known = self._pool.found[found] if len(self._pool.found) > found else None
        if known is not None:
            self._rescale(known[0])
        answer = self._solve(None if known is None else known[1])
        while answer.proven:
            if answer.assignment is None:
                if self._model.cutoff == np.inf:
                    break
                self._model = self._build(np.inf)
            else:
                value = float(self._problem.tables.total(self._problem.objective, answer.assignment[None])[0])
                if value > self._model.cutoff + self._model.precision:
                    self._model = self._build(np.inf)
                elif not self._problem.within(answer.assignment[None])[0] or not self._rescale(value):
                    break
            answer = self._solve(answer.assignment)
        return answer

    def _rescale(self, value: float) -> bool:
        """Build the program anew for policies of at most this value if the present one is too coarse or cut below."""
        model = self._model
        if self._problem.objective == PEAK or not (value > model.cutoff or model.precision > _FINE * abs(value)):
            return False
        other = self._build(value)
        if value <= model.cutoff and other.precision > _FINER * model.precision:
            return False
        self._model = other
        return True

    def _solve(self, start: Ints | None) -> Answer:
        left = None if self._deadline == np.inf else max(self._deadline - time.perf_counter(), 0.01)
        return self._model.solve(self._solver, gap=self._gap, time_limit=left, start=start)

    def _take(self, answer: Answer) -> bool:
        """Offer an answer to the pool and exclude it; says whether it counts: some slip through a tolerance."""
        if answer.assignment is None:
            return False
        genuine = bool(self._problem.within(answer.assignment[None])[0])
        if genuine:
            self._pool.offer(answer.assignment[None])
        self._slips += not genuine
        self._excluded.append(answer.assignment)
        self._model.exclude(answer.assignment)
        if self._slips == _SLIPS and not genuine:
            self._margin = 10 * SLIP
            self._model = self._build(self._model.cutoff)
        return genuine

    def _told_apart(self, found: int) -> bool:
        """Whether what the solver cannot tell apart is next to nothing beside the value of the policy found last."""
        if self._problem.objective == PEAK or len(self._pool.found) < found:
            return True
        value, model = self._pool.found[found - 1][0], self._model
        return min(model.precision, value - model.shift) <= _OPTIMAL * abs(value)
