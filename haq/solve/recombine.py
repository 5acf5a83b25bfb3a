"""Local search by many changes at once: which of the best changes, taken together, use the budgets up.

A change sets the choices of a few neighbouring groups: of one group, or of a connected part in which another known
assignment differs. Changes that do not touch each other add up, so sets of them are formed in two halves, and each
set of the first half is combined with the best set of the second that still fits into the budgets (Horowitz and Sahni,
Computing partitions with applications to the knapsack problem, 1974).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from haq.problem.problem import Problem
from haq.problem.tables import Floats, Ints

_SINGLES = 200
"""Changes of one group that are looked at, those of least reduced cost."""
_CELLS = 400_000
"""At most about so many entries in the list of changed assignments."""
_ALTERNATIVES = 3
"""Changes that exclude each other, at one place."""
_PLACES = 24
"""Places combined in one round, half of them with the other half."""
_SUBSETS = 2000
"""Sets of changes kept per half, those of least reduced cost."""
_TRIED = 20
"""Combinations that are priced exactly before a round gives up."""


@dataclass(frozen=True)
class _Changes:
    """Changes or sets of them: what they do to the objective and to the usage of each budget, and which they are.

    Attributes:
        objective: by how much it rises, `[N]`.
        usage: by how much of each budget the usage rises, `[N, budgets]`.
        reduced: objective plus price of the usage, `[N]`.
        members: indices of the single changes in each set, -1 for none, `[N, places]`.
    """

    objective: Floats
    usage: Floats
    reduced: Floats
    members: Ints

    def rows(self, index: Ints) -> _Changes:
        return _Changes(self.objective[index], self.usage[index], self.reduced[index], self.members[index])

    def subsets(self, places: Sequence[Sequence[int]]) -> _Changes:
        """Sets of at most one change per place, the least reduced costs, sorted by objective."""
        width = self.usage.shape[1]
        result = _Changes(np.zeros(1), np.zeros((1, width)), np.zeros(1), np.full((1, len(places)), -1))
        for column, alternatives in enumerate(places):
            options = np.array([-1, *alternatives])
            old, new = (
                np.repeat(np.arange(len(result.objective)), len(options)),
                np.tile(options, len(result.objective)),
            )
            taken = new >= 0
            members = result.members[old]
            members[:, column] = new
            merged = _Changes(
                result.objective[old] + np.where(taken, self.objective[new], 0.0),
                result.usage[old] + np.where(taken[:, None], self.usage[new], 0.0),
                result.reduced[old] + np.where(taken, self.reduced[new], 0.0),
                members,
            )
            result = merged.rows(np.argsort(merged.reduced, kind="stable")[:_SUBSETS])
        return result.rows(np.argsort(result.objective, kind="stable"))


class Recombination:
    """Improves assignments within budget, step by step.

    Args:
        problem: tables, budgets and objective.
        prices: what one whole budget is worth in the objective (Lagrange multipliers).
        others: assignments of low Lagrangian cost, whose differences are candidates for changes, `[N, G]`.
    """

    def __init__(self, problem: Problem, prices: Mapping[str, float], others: Ints) -> None:
        self.problem, self.others = problem, others
        self.metrics = tuple(prices)
        self.prices = np.array(list(prices.values()))
        self.bounds = np.array([problem.budgets[metric] for metric in prices])
        self.scales = np.where(self.bounds == 0.0, 1.0, np.abs(self.bounds))

    @cached_property
    def _adjacent(self) -> list[set[int]]:
        """Groups that share a cost or a tie with each group."""
        tables = self.problem.tables
        result: list[set[int]] = [set() for _ in tables.groups]
        joined = [list(ends) for pairs in tables.pairs.values() for ends in zip(pairs.first, pairs.second, strict=True)]
        joined += [list(fan_out.groups) for fan_out in tables.fan_outs]
        joined += [[group for group, _ in tie.members] for tie in tables.ties]
        for groups in joined:
            for group in groups:
                result[group].update(int(other) for other in groups)
        return result

    def improve(self, assignment: Ints) -> Ints:
        """Rounds until none helps."""
        skip = 0
        while skip <= 2 * _PLACES:
            better = self._round(assignment, skip)
            skip = skip + _PLACES // 2 if better is None else 0
            assignment = assignment if better is None else better
        return assignment

    def _priced(self, assignments: Ints) -> tuple[Floats, Floats]:
        """Objective `[N]` and part of each budget used `[N, budgets]`."""
        tables = self.problem.tables
        shape = len(self.metrics), len(assignments)
        totals = np.array([tables.total(metric, assignments) for metric in self.metrics]).reshape(shape)
        return tables.total(self.problem.objective, assignments), totals.T / self.scales

    def _round(self, assignment: Ints, skip: int) -> Ints | None:
        value, used = self._priced(assignment[None])
        changed = self._candidates(assignment)
        if not len(changed):
            return None
        objective, usage = self._priced(changed)
        objective, usage = objective - value, usage - used
        single = _Changes(objective, usage, objective + usage @ self.prices, np.arange(len(changed))[:, None])
        places = self._places(changed != assignment, single.reduced)[skip : skip + _PLACES]
        first, second = single.subsets(places[0::2]), single.subsets(places[1::2])
        room = self.bounds / self.scales - used[0]
        return self._best(assignment, float(value[0]), room, changed, first, second)

    def _candidates(self, assignment: Ints) -> Ints:
        """The assignments after each change, `[N, G]`."""
        tables, near = self.problem.tables, self.problem.near
        reduced = near.after(self.problem.objective, assignment)
        for metric, scale, price in zip(self.metrics, self.scales, self.prices, strict=True):
            reduced = reduced + price / scale * near.after(metric, assignment)
        moves = np.flatnonzero(near.single(assignment))
        moves = moves[np.argsort(reduced[moves], kind="stable")[: min(_SINGLES, _CELLS // (2 * len(assignment)))]]
        singles = np.repeat(assignment[None], len(moves), axis=0)
        singles[np.arange(len(moves)), tables.group_of[moves]] = tables.choice_of[moves]
        rows = {row.tobytes(): row for row in singles}
        for other in self.others:
            if len(rows) * len(assignment) > _CELLS:
                break
            rows |= {row.tobytes(): row for row in self._parts(assignment, other)}
        return np.array(list(rows.values()), dtype=np.int64).reshape(-1, len(assignment))

    def _parts(self, assignment: Ints, other: Ints) -> Iterator[Ints]:
        """`assignment` with a connected part of its difference to `other` taken over, or the ends of a long part."""
        left = set(np.flatnonzero(assignment != other).tolist())
        while left:
            part, frontier = set[int](), {min(left)}
            while frontier:
                part |= frontier
                left -= frontier
                frontier = {near for group in frontier for near in self._adjacent[group] if near in left}
            groups = sorted(part)
            lengths = [1 << bit for bit in range(len(groups).bit_length()) if 1 << bit < len(groups)]
            for some in (groups, *(groups[:n] for n in lengths), *(groups[-n:] for n in lengths)):
                row = assignment.copy()
                row[some] = other[some]
                yield row

    def _places(self, touched: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], reduced: Floats) -> list[list[int]]:
        """Changes by place, the best first; those of different places touch neither the same nor adjacent groups."""
        places: list[list[int]] = []
        owner: dict[int, int] = {}
        for change in np.argsort(reduced, kind="stable").tolist():
            groups = np.flatnonzero(touched[change]).tolist()
            around = {near for group in groups for near in (group, *self._adjacent[group])}
            met = {owner[group] for group in around if group in owner}
            if len(met) > 1 or not groups:
                continue
            place = met.pop() if met else len(places)
            if place == len(places):
                places.append([])
            if len(places[place]) < _ALTERNATIVES:
                places[place].append(change)
                owner |= dict.fromkeys(groups, place)
        return places

    def _best(
        self, assignment: Ints, value: float, room: Floats, changed: Ints, first: _Changes, second: _Changes
    ) -> Ints | None:
        """Of each set in `first` with the best in `second` that still fits, the best that exact prices confirm."""
        fits = np.ones((len(first.objective), len(second.objective)), dtype=np.bool_)
        for column, left in enumerate(room):
            fits &= second.usage[None, :, column] <= left - first.usage[:, None, column]
        partner = fits.argmax(axis=1)  # `second` is sorted: the first that fits is the best
        total = np.where(fits.any(axis=1), first.objective + second.objective[partner], np.inf)
        for index in np.argsort(total, kind="stable")[:_TRIED]:
            if not total[index] < -1e-12 * abs(value):
                return None
            trial = assignment.copy()
            for change in (*first.members[index], *second.members[partner[index]]):
                if change >= 0:
                    trial = np.where(changed[change] != assignment, changed[change], trial)
            better = self.problem.tables.total(self.problem.objective, trial[None])[0] < value - 1e-12 * abs(value)
            if better and self.problem.within(trial[None])[0]:
                return trial
        return None
