"""A lower bound and good policies fast: Lagrange multipliers on the budgets, min-sum elimination over the pair costs.

Geoffrion, Lagrangean relaxation for integer programming (1974). For multipliers l >= 0 on budgets b,
L(l) = min_x f(x) + sum_m l_m (c_m(x) - b_m) is a lower bound on the optimum. The inner minimum (`Relaxation`) is exact
on chains, trees and residual networks without fan-outs; the best multipliers come from column generation (`Master`);
min-marginals of the inner problem tell which choices no policy better than a known one can take.
"""

from __future__ import annotations

import time

import numpy as np

from haq.problem.document import PEAK
from haq.problem.moves import TOLERANCE, descend, improve
from haq.problem.problem import Problem
from haq.problem.tables import Bools, Floats, Ints, Tables
from haq.solve.column_generation import Master
from haq.solve.pool import Pool
from haq.solve.recombine import Recombination
from haq.solve.relaxation import Minimum, Relaxation

ROUNDING = 1e-12
"""Bounds and values that differ by less, relative to the magnitude of the terms, count as equal."""
PRECISION = 1e-9
"""But only where that is less than this part of the best value: large terms must not hide differences of small ones."""
_PENALTY = 1e3
"""Largest multiplier, relative to the magnitude of the objective."""
_STEPS_AT_ONCE = 4
_OTHERS = 40
"""Policies of the lowest Lagrangian cost that are recombined."""


class Lagrangian:
    """The dual of a problem whose objective is additive. Run `ascend`, then read `bound`, `pool` and `surviving`.

    Args:
        problem: not one that minimises peak memory.
        pool: collects the policies found on the way.
        allowed: variables that may be chosen, `[V]`; default: all that the ties leave.

    Attributes:
        bound: no policy of these variables within budget has a better objective.
        magnitude: no value of the objective is larger in size.
        infeasible: whether it is proven that no policy is within budget.
        allowed: variables that some policy within the budgets may choose, as far as each budget alone tells, `[V]`.
    """

    def __init__(self, problem: Problem, pool: Pool, allowed: Bools | None = None) -> None:
        self.problem, self.pool = problem, pool
        self.tables = problem.tables
        # Within budget means within its tolerance; a bound must hold for that.
        self.budgets = {metric: bound + TOLERANCE * (abs(bound) or 1.0) for metric, bound in problem.budgets.items()}
        self.peak = self.budgets.pop(PEAK, None)
        self.scale = {metric: abs(bound) or 1.0 for metric, bound in self.budgets.items()}
        self.relaxation = Relaxation(self.tables, list(dict.fromkeys([problem.objective, *self.budgets])))
        self.allowed = self._affordable(self.tables.allowed if allowed is None else allowed)
        possible = np.logical_or.reduceat(self.allowed, self.tables.start[:-1])
        self.infeasible = not possible.all()
        self.magnitude = _magnitude(self.tables, problem.objective, self.allowed)
        self.bound = np.inf if self.infeasible else -np.inf
        self._best: tuple[Floats, Minimum] | None = None
        self._steps: list[int] = []
        self._columns: list[tuple[float, Ints]] = []
        self._mixture: list[Ints] = []

    def _affordable(self, allowed: Bools) -> Bools:
        """Variables that break no budget, and stay within the pool's threshold, even if all else is at its least."""
        result = allowed.copy()
        limits = [(metric, bound + TOLERANCE * self.scale[metric]) for metric, bound in self.budgets.items()]
        if np.isfinite(self.pool.threshold):
            objective = self.problem.objective
            limits.append((objective, self.pool.threshold + ROUNDING * _magnitude(self.tables, objective, allowed)))
        for metric, limit in limits:
            cost = np.where(allowed, self.relaxation.unary[metric], np.inf)
            minimum = self.relaxation.minimise(cost, {metric: 1.0})
            result &= minimum.marginals() + self.tables.offsets.get(metric, 0.0) <= limit
        if self.peak is not None:
            result &= _fits_every_step(self.tables, self.peak * (1 + TOLERANCE))
        return result

    def _usage(self, assignment: Ints) -> Floats:
        """How much of each budget is used, 1 for all of it; then of the active steps."""
        row = assignment[None]
        usage = [
            (self.tables.total(metric, row)[0] - bound) / self.scale[metric] + 1.0
            for metric, bound in self.budgets.items()
        ]
        if self.peak is not None:
            usage += list(self.tables.steps.totals(row)[0, self._steps] / self.peak)
        return np.array(usage)

    def _inner(self, multipliers: Floats) -> tuple[float, Minimum]:
        """L(multipliers), as in the module's docstring, and where it is attained."""
        relaxation, offsets = self.relaxation, self.tables.offsets
        objective = self.problem.objective
        weights = {objective: 1.0}
        cost = np.where(self.allowed, relaxation.unary[objective], np.inf)
        constant = offsets.get(objective, 0.0)
        for (metric, bound), multiplier in zip(self.budgets.items(), multipliers, strict=False):
            weight = multiplier / self.scale[metric]
            weights[metric] = weights.get(metric, 0.0) + weight
            cost += weight * relaxation.unary[metric]
            constant += weight * (offsets.get(metric, 0.0) - bound)
        if self.peak is not None:
            for step, multiplier in zip(self._steps, multipliers[len(self.budgets) :], strict=True):
                constant += multiplier / self.peak * (self.tables.steps.fixed[step] - self.peak)
                _add_step(self.tables, cost, step, multiplier / self.peak)
        minimum = relaxation.minimise(cost, weights)
        return minimum.total + constant, minimum

    def ascend(self, *, gap: float = 0.0, deadline: float = np.inf) -> None:
        """Raise the bound until it stops rising, `gap` is met or the deadline (of `time.perf_counter`) has passed."""
        multipliers = np.zeros(len(self.budgets))
        while not self.infeasible:
            master = Master(len(multipliers), _PENALTY * self.magnitude)
            for cost, assignment in self._columns:
                master.add(cost, self._usage(assignment))
            for _ in range(60 + 20 * len(multipliers)):
                if not self._evaluate(multipliers, master):
                    return
                value, multipliers = master.solve()
                done = time.perf_counter() > deadline or self.closed(gap)
                if done or value - self.bound <= 1e-9 * abs(value):
                    break
            self._mixture = [
                assignment
                for (_, assignment), weight in zip(self._columns, master.weights, strict=True)
                if weight > 1e-9
            ]
            if done or not self._activate(master):
                return
            new = len(self.budgets) + len(self._steps) - len(multipliers)
            multipliers = np.concatenate([multipliers, np.zeros(new)])

    def _evaluate(self, multipliers: Floats, master: Master) -> bool:
        """Solve one inner problem and add its policy as a column; says whether a policy may be within budget."""
        value, minimum = self._inner(multipliers)
        if self._best is None or value > self.bound:
            self.bound, self._best = value, (multipliers, minimum)
        # No policy's objective is beyond the magnitude; twice that leaves room for rounding.
        if value > 2.0 * self.magnitude:
            self.infeasible = True
            return False
        assignment = minimum.assignment()
        self.pool.offer(assignment[None])
        cost = float(self.tables.total(self.problem.objective, assignment[None])[0])
        self._columns.append((cost, assignment))
        master.add(cost, self._usage(assignment))
        return True

    @property
    def rounding(self) -> float:
        """What the bound may be off by for the rounding of its terms."""
        return ROUNDING * self.magnitude

    @property
    def precise(self) -> bool:
        """Whether that is next to nothing beside the best value, so that bounds and values may be compared."""
        return bool(self.pool.found) and self.rounding <= PRECISION * abs(self.pool.best)

    def closed(self, gap: float) -> bool:
        """Whether the best policy is proven to be within `gap` (relative) of the optimum."""
        if not self.pool.found:
            return False
        if self.precise:
            return self.pool.best - self.bound <= max(gap * abs(self.pool.best), self.rounding)
        return self.pool.best - self.bound + self.rounding <= gap * abs(self.pool.best)

    def _activate(self, master: Master) -> bool:
        """Give multipliers to execution steps that the mixture of assignments exceeds; says whether there were any."""
        if self.peak is None:
            return False
        totals = self.tables.steps.totals(np.array([assignment for _, assignment in self._columns]))
        mixed = master.weights @ totals
        over = [int(step) for step in np.argsort(-mixed)[:_STEPS_AT_ONCE] if mixed[step] > self.peak * (1 + 1e-6)]
        added = [step for step in over if step not in self._steps]
        self._steps += added
        return bool(added)

    def polish(self, *, gap: float = 0.0) -> None:
        """Better policies from those that the bound came from: into the budgets, through the slack, recombined.

        Stops early once `gap` is met.
        """
        if self._best is None:
            return
        near = self.problem.near
        for start in self._mixture:
            assignment, over = descend(near, start)
            if over == 0:
                self.pool.offer(improve(near, assignment)[None])
        if self.pool.found and not self.closed(gap):
            multipliers = self._best[0]
            # Steps may have become active after the best multipliers were found.
            usages = [self._usage(assignment)[: len(multipliers)] for _, assignment in self._columns]
            lagrangian = [cost + multipliers @ used for (cost, _), used in zip(self._columns, usages, strict=True)]
            others = [self._columns[i][1] for i in np.argsort(lagrangian, kind="stable")[:_OTHERS]]
            prices = dict(zip(self.budgets, multipliers.tolist(), strict=False))
            recombination = Recombination(self.problem, prices, np.array(others))
            self.pool.offer(recombination.improve(self.pool.found[0][1])[None])

    def widen(self) -> None:
        """Fill a pool for several policies with the neighbours of its best."""
        tables, near = self.tables, self.problem.near
        for _, assignment in list(self.pool.found):
            _, over, joint = near.price(assignment)
            moves = np.flatnonzero(over == 0)
            rows = [near.apply(assignment, int(move), joint) for move in moves[: 64 * self.pool.keep]]
            self.pool.offer(np.array(rows, dtype=np.int64).reshape(-1, len(tables.groups)))

    def surviving(self) -> Bools:
        """Variables that a policy better than the pool's threshold (or equal to it) may still choose, `[V]`."""
        if self._best is None or not np.isfinite(self.pool.threshold):
            return self.allowed
        minimum = self._best[1]
        floor = minimum.marginals() + (self.bound - minimum.total)
        result: Bools = self.allowed & (floor <= self.pool.threshold + 1e-9 * self.magnitude)
        return result


def _magnitude(tables: Tables, metric: str, allowed: Bools) -> float:
    """No assignment's value of `metric` is larger than this in size."""
    sizes = np.where(allowed, np.abs(tables.unary[metric]), 0.0)
    largest = np.maximum.reduceat(sizes, tables.start[:-1]).sum()
    pairs = tables.pairs[metric]
    if len(pairs):
        largest += np.maximum.reduceat(np.abs(pairs.flat), pairs.offset).sum()
    largest += sum(fan.costs.max() * len(fan.readers) for fan in tables.fan_outs if fan.metric == metric)
    return float(largest + abs(tables.offsets.get(metric, 0.0))) or 1.0


def _step_entries(tables: Tables) -> list[tuple[int, slice, Floats]]:
    """`(step, variables of the group, bytes per choice)` of everything live in some step."""
    steps = tables.steps
    result = []
    for step, group, offset in zip(steps.step.tolist(), steps.group.tolist(), steps.offset.tolist(), strict=True):
        where = slice(tables.start[group], tables.start[group + 1])
        result.append((step, where, steps.flat[offset : offset + where.stop - where.start]))
    return result


def _add_step(tables: Tables, cost: Floats, step: int, weight: float) -> None:
    for live_step, where, sizes in _step_entries(tables):
        if live_step == step:
            cost[where] += weight * sizes


def _fits_every_step(tables: Tables, bound: float) -> Bools:
    """Variables within the bound in every step if all else there is as small as allowed."""
    entries = [(step, where, sizes, sizes[tables.allowed[where]].min()) for step, where, sizes in _step_entries(tables)]
    least = tables.steps.fixed.copy()
    for step, _, _, smallest in entries:
        least[step] += smallest
    result = np.full(len(tables.group_of), bool((least <= bound).all()))
    for step, where, sizes, smallest in entries:
        result[where] &= least[step] - smallest + sizes <= bound
    return result
