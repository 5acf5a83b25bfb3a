"""Activation ties: which choices fit together, the cheapest that do, and moves that change a shared format at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from haq.problem.tables import ActivationTie, Bools, Floats, Ints, Tables
from haq.values.errors import InputError

_COMBINATIONS = 64
"""At most so many combinations of formats of one set of connected ties are tried as moves."""


def cheapest(tables: Tables, cost: Floats) -> Ints:
    """The assignment of least total `cost` `[V]` among those that respect all ties; pair costs do not count.

    Raises:
        InputError: no assignment respects the activation ties, or every one costs infinity.
    """
    cost = np.where(tables.allowed, cost, np.inf)
    for ties in _tied_together(tables):
        cost = _best_formats(tables, cost, ties)
    least = np.minimum.reduceat(cost, tables.start[:-1])
    if not np.isfinite(least).all():
        names = [tables.layers[i] for i in tables.groups[int(np.argmin(np.isfinite(least)))]]
        raise InputError(
            f"activation_ties: no choice of {', '.join(names)} fits them; give the tied layers a common choice"
        )
    best = np.flatnonzero(cost == least[tables.group_of])[::-1]
    result = np.empty(len(tables.groups), dtype=np.int64)
    result[tables.group_of[best]] = tables.choice_of[best]
    return result


def _tied_together(tables: Tables) -> list[list[ActivationTie]]:
    """The activation ties by connected component: those that share a group must be decided together."""
    components: list[tuple[set[int], list[ActivationTie]]] = []
    for tie in tables.ties:
        groups, ties = {group for group, _ in tie.members}, [tie]
        for other in [entry for entry in components if entry[0] & groups]:
            groups, ties = groups | other[0], other[1] + ties
            components.remove(other)
        components.append((groups, ties))
    return [ties for _, ties in components]


def _best_formats(tables: Tables, cost: Floats, ties: list[ActivationTie]) -> Floats:
    """`cost` with infinity on what the best formats of connected `ties` rule out: depth first, cut off by the total."""
    groups = sorted({group for tie in ties for group, _ in tie.members})
    best = (np.inf, np.full_like(cost, np.inf))

    def total(costs: Floats) -> float:
        return float(sum(costs[tables.start[g] : tables.start[g + 1]].min() for g in groups))

    def descend(depth: int, costs: Floats) -> None:
        nonlocal best
        if (least := total(costs)) >= best[0]:
            return
        if depth == len(ties):
            best = least, costs
            return
        for label in np.unique(np.concatenate([labels for _, labels in ties[depth].members])):
            descend(depth + 1, restrict(tables, costs, ties[depth], int(label)))

    descend(0, cost)
    return best[1]


def restrict(tables: Tables, cost: Floats, tie: ActivationTie, label: int) -> Floats:
    """`cost` with infinity on the choices of the tie's groups that give another format than `label`."""
    cost = cost.copy()
    for group, labels in tie.members:
        cost[tables.start[group] : tables.start[group + 1]][labels != label] = np.inf
    return cost


class TieMoves:
    """Moves that take connected ties to another combination of formats.

    Groups whose choice fits the new formats stay; the others take, in one move, their choice of the nearest weight
    bits, and in further moves that of the least value of each metric.

    Args:
        tables: the problem's.
        metrics: additive metrics.
    """

    def __init__(self, tables: Tables, metrics: Sequence[str]) -> None:
        self.groups = len(tables.groups)
        self.components: list[tuple[list[int], Ints]] = []
        for ties in _tied_together(tables):
            members = sorted({group for tie in ties for group, _ in tie.members})
            width = int(tables.sizes[members].max())
            rows = [
                [_targets(tables, group, fits, metric, width) for group, fits in zip(members, combination, strict=True)]
                for combination in islice(_combinations(tables, ties, members), _COMBINATIONS)
                for metric in (None, *metrics)
            ]
            self.components.append((members, np.array(rows, dtype=np.int64).reshape(-1, len(members), width)))

    def moves(self, assignment: Ints) -> Ints:
        """The assignments after each move, `[N, G]`."""
        parts = [np.empty((0, self.groups), dtype=np.int64)]
        for members, targets in self.components:
            chosen = targets[:, np.arange(len(members)), assignment[members]]
            chosen = np.unique(chosen[(chosen != assignment[members]).any(axis=1)], axis=0)
            rows = np.repeat(assignment[None], len(chosen), axis=0)
            rows[:, members] = chosen
            parts.append(rows)
        return np.concatenate(parts)


def _combinations(tables: Tables, ties: Sequence[ActivationTie], members: Sequence[int]) -> Iterator[list[Bools]]:
    """For each combination of formats that leaves every group a choice: which choices of each group fit."""

    def descend(depth: int, fits: dict[int, Bools]) -> Iterator[list[Bools]]:
        if not all(mask.any() for mask in fits.values()):
            return
        if depth == len(ties):
            yield [fits[group] for group in members]
            return
        for label in np.unique(np.concatenate([labels for _, labels in ties[depth].members])):
            narrowed = {group: fits[group] & (labels == label) for group, labels in ties[depth].members}
            yield from descend(depth + 1, fits | narrowed)

    return descend(0, {g: tables.allowed[tables.start[g] : tables.start[g + 1]] for g in members})


def _targets(tables: Tables, group: int, fits: Bools, metric: str | None, width: int) -> Ints:
    """Where each choice of a group moves: nowhere if it fits, else to the nearest or the least that does."""
    bits = np.array([[p.weight.bits for p in tables.precisions[layer]] for layer in tables.groups[group]])
    distance = np.abs(bits[:, :, None] - bits[:, None, :]).sum(axis=0).astype(np.float64)
    if metric is not None:
        distance[:] = tables.unary[metric][tables.start[group] : tables.start[group + 1]]
    target = np.where(fits, np.arange(len(fits)), np.where(fits, distance, np.inf).argmin(axis=1))
    return np.pad(target, (0, width - len(target)))
