"""Local search by pairs: two groups change at once, one to free budget and one to spend it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from haq.problem import Problem
from haq.problem_tables import Floats, Ints

_CANDIDATES = 400
"""Single moves that are paired, those of least reduced cost."""
_TRIED = 20
"""Pairs that are priced exactly: neighbours in the graph are not independent of each other."""


def exchange(problem: Problem, assignment: Ints, prices: Mapping[str, float]) -> Ints:
    """Take the best pair of single moves that stays within budget, again and again.

    Args:
        problem: tables, budgets and objective.
        assignment: within budget.
        prices: what one whole budget is worth in the objective (Lagrange multipliers); guides which moves are paired.
    """
    while (better := _best_pair(problem, assignment, prices)) is not None:
        assignment = better
    return assignment


def _best_pair(problem: Problem, assignment: Ints, prices: Mapping[str, float]) -> Ints | None:
    tables = problem.tables
    value = float(tables.total(problem.objective, assignment[None])[0])
    moves, change, usage, room = _candidates(problem, assignment, prices)
    gain = change[:, None] + change[None, :]
    fits = tables.group_of[moves][:, None] != tables.group_of[moves][None, :]
    for used, left in zip(usage, room, strict=True):
        fits &= used[:, None] + used[None, :] <= left
    gain = np.where(fits, gain, np.inf)
    if not gain.size:
        return None
    most = np.argpartition(gain, min(_TRIED, gain.size - 1), axis=None)[:_TRIED]
    for index in most[np.argsort(gain.ravel()[most], kind="stable")]:
        first, second = np.unravel_index(index, gain.shape)
        if not gain[first, second] < -1e-12 * abs(value):
            return None
        trial = assignment.copy()
        for move in (moves[first], moves[second]):
            trial[tables.group_of[move]] = tables.choice_of[move]
        better = tables.total(problem.objective, trial[None])[0] < value - 1e-12 * abs(value)
        if better and problem.within(trial[None])[0]:
            return trial
    return None


def _candidates(
    problem: Problem, assignment: Ints, prices: Mapping[str, float]
) -> tuple[Ints, Floats, list[Floats], list[float]]:
    """The moves worth pairing, their change of the objective and of each budget's usage, and the room in each."""
    tables, near = problem.tables, problem.near
    row = assignment[None]
    allowed = near.price(assignment)[1][: len(tables.group_of)] < np.inf
    change = near.after(problem.objective, assignment) - tables.total(problem.objective, row)[0]
    reduced = change.copy()
    usage, room = [], []
    for metric, price in prices.items():
        bound = problem.budgets[metric]
        now, scale = float(tables.total(metric, row)[0]), abs(bound) or 1.0
        usage.append((near.after(metric, assignment) - now) / scale)
        room.append((bound - now) / scale)
        reduced += price * usage[-1]
    moves = np.flatnonzero(allowed)
    moves = moves[np.argsort(reduced[moves], kind="stable")[:_CANDIDATES]]
    return moves, change[moves], [used[moves] for used in usage], room
