"""Moves from one assignment to its neighbours, and two walks made of them: into budgets, and through their slack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from haq.problem.document import PEAK
from haq.problem.tables import Bools, FanOut, Floats, Ints, Pairs, Tables
from haq.problem.ties import TieMoves, cheapest

__all__ = ["TOLERANCE", "Neighbourhood", "cheapest", "descend", "excess", "improve"]

TOLERANCE = 1e-12
"""A policy is within a budget if it exceeds it by no more than this part of it: the rounding of a sum, nothing more."""


def excess(value: Floats, bound: float) -> Floats:
    """How far `value` lies above `bound`, as a part of it; 0 within the tolerance."""
    over = (value - bound) / (abs(bound) or 1.0)
    return np.where(over > TOLERANCE, over, 0.0)


@dataclass(frozen=True)
class _PairRows:
    """For every variable and every pair cost on its group: where its row lies in `flat`."""

    term: Ints
    variable: Ints
    base: Ints
    other: Ints
    scale: Ints

    @classmethod
    def build(cls, tables: Tables, pairs: Pairs) -> _PairRows:
        parts = []
        terms = np.arange(len(pairs))
        for mine, other, step, scale in (
            (pairs.first, pairs.second, pairs.stride, np.ones_like(pairs.stride)),
            (pairs.second, pairs.first, np.ones_like(pairs.stride), pairs.stride),
        ):
            counts = tables.sizes[mine]
            term = np.repeat(terms, counts)
            choice = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            variable = tables.start[mine][term] + choice
            parts.append((term, variable, pairs.offset[term] + choice * step[term], other[term], scale[term]))
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class Neighbourhood:
    """Prices every move from an assignment: one group to another choice, or tied groups to another shared format.

    Args:
        tables: the problem's.
        objective: metric to keep low.
        budgets: metric -> upper bound.
    """

    def __init__(self, tables: Tables, *, objective: str, budgets: Mapping[str, float]) -> None:
        self.tables, self.objective, self.budgets = tables, objective, dict(budgets)
        self._ties = TieMoves(tables, [metric for metric in dict.fromkeys([objective, *budgets]) if metric != PEAK])
        self._rows = {metric: _PairRows.build(tables, pairs) for metric, pairs in tables.pairs.items() if len(pairs)}

    def excess(self, assignments: Ints) -> Floats:
        """Total relative excess over the budgets (each execution step counts) for rows of `assignments` `[N, G]`."""
        result = np.zeros(len(assignments))
        for metric, bound in self.budgets.items():
            if metric == PEAK:
                result += excess(self.tables.steps.totals(assignments), bound).sum(axis=1)
            else:
                result += excess(self.tables.total(metric, assignments), bound)
        return result

    def price(self, assignment: Ints) -> tuple[Floats, Floats, Ints]:
        """Objective and excess after each move: first the V single moves, then those in the returned rows `[N, G]`.

        A single move that a tie forbids, and the move to the present choice, have excess infinity.
        """
        tables = self.tables
        objective = self.after(self.objective, assignment)
        over = np.zeros(len(objective))
        for metric, bound in self.budgets.items():
            if metric == PEAK:
                over += self._step_excess_after(assignment, bound)
            else:
                over += excess(self.after(metric, assignment), bound)
        over[~self.single(assignment)] = np.inf
        joint = self._ties.moves(assignment)
        if len(joint):
            objective = np.concatenate([objective, tables.total(self.objective, joint)])
            over = np.concatenate([over, self.excess(joint)])
        return objective, over, joint

    def apply(self, assignment: Ints, move: int, joint: Ints) -> Ints:
        """The assignment after one move that `price` listed."""
        if move >= len(self.tables.group_of):
            result: Ints = joint[move - len(self.tables.group_of)]
            return result
        result = assignment.copy()
        result[self.tables.group_of[move]] = self.tables.choice_of[move]
        return result

    def single(self, assignment: Ints) -> Bools:
        """Variables that may be chosen while all else stays."""
        tables = self.tables
        result = tables.allowed.copy()
        result[tables.start[:-1] + assignment] = False
        for tie in tables.ties:
            for group, labels in tie.members:
                result[tables.start[group] : tables.start[group + 1]] &= labels == labels[assignment[group]]
        return result

    def after(self, metric: str, assignment: Ints) -> Floats:
        """Value of `metric` after each single move, `[V]`."""
        tables = self.tables
        if metric == PEAK:
            return self._peak_after(assignment)
        unary = tables.unary[metric]
        result: Floats = unary - unary[tables.start[:-1] + assignment][tables.group_of]
        result += tables.total(metric, assignment[None])[0]
        if metric in self._rows:
            rows, pairs = self._rows[metric], tables.pairs[metric]
            now = pairs.flat[pairs.offset + assignment[pairs.first] * pairs.stride + assignment[pairs.second]]
            change = pairs.flat[rows.base + rows.scale * assignment[rows.other]] - now[rows.term]
            result += np.bincount(rows.variable, change, minlength=len(result))
        for fan_out in tables.fan_outs:
            if fan_out.metric == metric:
                self._add_fan_out(result, fan_out, assignment)
        return result

    def _add_fan_out(self, result: Floats, fan_out: FanOut, assignment: Ints) -> None:
        for group in fan_out.groups:
            where = slice(self.tables.start[group], self.tables.start[group + 1])
            rows = np.repeat(assignment[None], where.stop - where.start, axis=0)
            rows[:, group] = np.arange(len(rows))
            totals = fan_out.total(rows)
            result[where] += totals - totals[assignment[group]]

    @cached_property
    def _step_rows(self) -> tuple[Ints, Ints, Ints]:
        """For each choice of each live group: its entry in `steps`, its variable, its position in `steps.flat`."""
        steps, tables = self.tables.steps, self.tables
        counts = tables.sizes[steps.group]
        entry = np.repeat(np.arange(len(counts)), counts)
        choice = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return entry, tables.start[steps.group][entry] + choice, steps.offset[entry] + choice

    def _steps_after(self, assignment: Ints) -> tuple[Floats, Floats]:
        """Bytes per step now, and after each choice of each live group."""
        steps = self.tables.steps
        entry, _, position = self._step_rows
        now = steps.totals(assignment[None])[0]
        present = steps.flat[steps.offset + assignment[steps.group]]
        return now, now[steps.step[entry]] - present[entry] + steps.flat[position]

    def _step_excess_after(self, assignment: Ints, bound: float) -> Floats:
        now, after = self._steps_after(assignment)
        entry, variable, _ = self._step_rows
        over = excess(now, bound)
        change = excess(after, bound) - over[self.tables.steps.step[entry]]
        result = over.sum() + np.bincount(variable, change, minlength=len(self.tables.group_of))
        # Sums of differences leave rounding behind; what is that small is no excess.
        return np.where(result > TOLERANCE, result, 0.0)

    def _peak_after(self, assignment: Ints) -> Floats:
        steps, tables = self.tables.steps, self.tables
        now, after = self._steps_after(assignment)
        _, variable, _ = self._step_rows
        untouched = np.full(len(tables.groups), -np.inf)
        open_groups = np.arange(len(tables.groups))
        for step in np.argsort(-now):
            live = np.isin(open_groups, steps.group[steps.step == step])
            untouched[open_groups[~live]] = now[step]
            open_groups = open_groups[live]
            if not len(open_groups):
                break
        result = untouched[tables.group_of]
        np.maximum.at(result, variable, after)
        return result


def descend(near: Neighbourhood, assignment: Ints) -> tuple[Ints, float]:
    """Reduce the excess move by move, each time by the move of least objective per excess removed.

    Returns:
        The last assignment and its excess, 0 if it is within every budget.
    """
    over = float(near.excess(assignment[None])[0])
    value = float(near.tables.total(near.objective, assignment[None])[0])
    while over > 0:
        objective, after, joint = near.price(assignment)
        removed, loss = over - after, objective - value
        useful = removed > 1e-12 * over
        if not useful.any():
            break
        ratio = np.where(useful, loss / np.where(useful, removed, 1.0), np.inf)
        gains = useful & (loss <= 0)
        move = int(np.argmax(np.where(gains, removed, -np.inf)) if gains.any() else np.argmin(ratio))
        assignment = near.apply(assignment, move, joint)
        over = float(near.excess(assignment[None])[0])
        value = float(objective[move])
    return assignment, over


def improve(near: Neighbourhood, assignment: Ints) -> Ints:
    """Lower the objective move by move, each time by the largest step that stays within every budget."""
    value = float(near.tables.total(near.objective, assignment[None])[0])
    while True:
        objective, over, joint = near.price(assignment)
        objective = np.where(over > 0, np.inf, objective)
        move = int(np.argmin(objective))
        if not objective[move] < value - 1e-12 * abs(value):
            return assignment
        following = near.apply(assignment, move, joint)
        if near.excess(following[None])[0] > 0:
            return assignment
        assignment, value = following, float(objective[move])
