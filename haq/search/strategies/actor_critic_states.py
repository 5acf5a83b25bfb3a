"""A policy as HAQ's agent sees it, a row of decisions: what it sees, what an action means, how it meets a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from haq.problem.document import PEAK
from haq.problem.problem import Problem
from haq.problem.tables import Floats, Ints
from haq.values.errors import InputError
from haq.values.formats import Format

Features = Mapping[str, Mapping[str, float]]
"""Layer -> feature -> number: what HAQ's state says about a layer's shape."""


@dataclass(frozen=True)
class Decision:
    """The weights, or the activations, of one decision group.

    Attributes:
        group: which.
        weights: whether the weights are decided.
        values: bits of each choice of the group (places in the order of bits where two formats have equal bits).
    """

    group: int
    weights: bool
    values: Ints

    @property
    def low(self) -> int:
        return int(self.values.min())

    @property
    def high(self) -> int:
        return int(self.values.max())

    def wish(self, action: float) -> int:
        """What an action in [0, 1] asks for: every value from `low` to `high` has an equal part (HAQ's mapping)."""
        low, high = self.low - 0.5, self.high + 0.5
        return min(max(round((high - low) * action + low), self.low), self.high)

    def action(self, choice: int) -> float:
        """The middle of the actions that ask for the value of `choice`."""
        return float((self.values[choice] - self.low + 0.5) / (self.high - self.low + 1))

    def level(self, choice: int) -> float:
        """The value of `choice` between 0 (lowest) and 1 (highest)."""
        return float((self.values[choice] - self.low) / (self.high - self.low))

    def nearest(self, options: Ints, wish: int) -> Ints:
        """Those of `options` whose value is nearest to `wish`; of two equally near, the higher."""
        distance = np.abs(self.values[options] - wish)
        value = self.values[options[distance == distance.min()]].max()
        result: Ints = options[self.values[options] == value]
        return result


class Decisions:
    """The decisions of a problem, in network order, weights before activations; where there is no choice, none.

    Args:
        problem: tables and budgets.
        features: numbers that describe the layers; without, the tables do.
        switching: let the state show what a switch from the formats decided so far costs, per format.

    Raises:
        InputError: `features` leaves out a layer, or its layers have different features.
    """

    def __init__(self, problem: Problem, *, features: Features | None = None, switching: bool = False) -> None:
        self._problem, self._tables = problem, problem.tables
        members = [self._tables.precisions[group[0]] for group in self._tables.groups]
        self._axes = [
            (_values([p.weight for p in choices]), _values([p.activation for p in choices])) for choices in members
        ]
        self.all = [
            Decision(group, axis == 0, values)
            for group, axes in enumerate(self._axes)
            for axis, values in enumerate(axes)
            if values.min() < values.max()
        ]
        self._fixed = self._described(features)
        self._links = _links(problem) if switching else []
        self._levels = max((len(np.unique(axes[1])) for axes in self._axes), default=0) if self._links else 0

    @property
    def width(self) -> int:
        """Numbers in a state."""
        return int(self._fixed.shape[1]) + 1 + self._levels

    def rollout(self, act: Callable[[Floats], float]) -> tuple[Ints, Floats, Floats]:
        """Let `act` decide all: the assignment, the states `[T, width]` that it saw, and its actions `[T]`."""
        assignment = np.zeros(len(self._axes), dtype=np.int64)
        states, actions, previous = np.empty((len(self.all), self.width)), np.empty(len(self.all)), 1.0
        options, group = np.empty(0, dtype=np.int64), -1
        for number, decision in enumerate(self.all):
            if decision.group != group:
                group = decision.group
                options = np.arange(len(decision.values))
            states[number] = self._state(number, assignment, previous)
            actions[number] = act(states[number])
            options = decision.nearest(options, decision.wish(actions[number]))
            assignment[group] = options[0]
            previous = decision.level(int(options[0]))
        return assignment, states, actions

    def of(self, assignment: Ints) -> tuple[Floats, Floats]:
        """The states `[T, width]` and actions `[T]` that lead to an assignment."""
        previous = [1.0, *(d.level(int(assignment[d.group])) for d in self.all)]
        states = [self._state(number, assignment, previous[number]) for number in range(len(self.all))]
        actions = [d.action(int(assignment[d.group])) for d in self.all]
        return np.array(states).reshape(len(self.all), self.width), np.array(actions)

    def enforced(self, assignment: Ints) -> Ints | None:
        """The assignment within every budget that HAQ's loop reaches, `None` if it is exhausted before.

        From the last layer to the first, again and again: one step less for the activations, check, one step less
        for the weights, check. Tied layers step together.
        """
        while not self._problem.within(assignment[None])[0]:
            rows = []
            for group in reversed(range(len(assignment))):
                for axis in (1, 0):
                    if (lower := self._lower(assignment, group, axis)) is not None:
                        assignment = lower
                        rows.append(lower)
            if not rows:
                return None
            within = self._problem.within(np.array(rows))
            if within.any():
                result: Ints = rows[int(np.argmax(within))]
                return result
        return assignment

    def _lower(self, assignment: Ints, group: int, axis: int) -> Ints | None:
        """One step less of weights (axis 0) or activations (axis 1), with all that is tied; `None` if there is none."""
        choice = self._step(group, int(assignment[group]), axis)
        if choice is None:
            return None
        result = assignment.copy()
        result[group] = choice
        for tie in self._tables.ties:
            labels = dict(tie.members)
            if group not in labels:
                continue
            for other, label in labels.items():
                if other == group:
                    continue
                same = self._axes[other][0] == self._axes[other][0][assignment[other]]
                fits = np.flatnonzero(same & (label == labels[group][choice]))
                if not len(fits):
                    return None
                result[other] = fits[0]
        return result if self._tables.respects_ties(result[None])[0] else None

    def _step(self, group: int, choice: int, axis: int) -> int | None:
        moved, kept = self._axes[group][axis], self._axes[group][1 - axis]
        lower = np.flatnonzero((kept == kept[choice]) & (moved < moved[choice]))
        return int(lower[int(np.argmax(moved[lower]))]) if lower.size else None

    def _state(self, number: int, assignment: Ints, previous: float) -> Floats:
        fixed = self._fixed[number]
        prices = self._switch_prices(self.all[number].group, assignment) if self._links else np.empty(0)
        return np.concatenate([fixed, [previous], prices])

    def _switch_prices(self, group: int, assignment: Ints) -> Floats:
        """Per activation format of the group, lowest first: the price of the switches from the groups before it."""
        values = self._axes[group][1]
        price = np.zeros(len(values))
        for before, costs in self._links[group]:
            price += costs[assignment[before]]
        result = np.zeros(self._levels)
        for place, value in enumerate(np.unique(values)):
            result[place] = price[values == value].min()
        return result

    def _described(self, features: Features | None) -> Floats:
        """The part of each state that does not depend on what was decided, min-max normalised, `[T, ...]`."""
        groups = self._tables.groups
        of_groups = self._from_tables() if features is None else _from_features(features, self._problem.layers, groups)
        where = np.array([d.group for d in self.all], dtype=np.int64)
        rows = np.concatenate([of_groups, np.arange(len(groups))[:, None]], axis=1)[where]
        rows = np.concatenate([rows, [[float(d.weights)] for d in self.all] or np.empty((0, 1))], axis=1)
        if not len(rows):
            return rows
        low, spread = rows.min(axis=0), np.ptp(rows, axis=0)
        normal: Floats = (rows - low) / np.where(spread > 0, spread, 1.0)
        return normal

    def _from_tables(self) -> Floats:
        """Per group: the highest cost in each metric, the range of the sensitivity, how many layers it has."""
        tables = self._tables
        begins = tables.start[:-1]
        columns = [np.maximum.reduceat(values, begins) for values in tables.unary.values()]
        columns += [np.maximum.reduceat(v, begins) - np.minimum.reduceat(v, begins) for v in tables.unary.values()]
        return np.stack([*columns, np.array([len(group) for group in tables.groups], dtype=np.float64)], axis=1)


def _values(formats: list[Format]) -> Ints:
    bits = [format_.bits for format_ in formats]
    if len(set(bits)) < len(set(formats)):
        order = sorted(set(formats))
        return np.array([order.index(format_) for format_ in formats])
    return np.array(bits)


def _from_features(features: Features, layers: tuple[str, ...], groups: tuple[tuple[int, ...], ...]) -> Floats:
    names = sorted(features[layers[0]]) if layers[0] in features else []
    for layer in layers:
        if sorted(features.get(layer, {})) != names or not names:
            raise InputError(f"features.{layer}: every layer needs the same features ({', '.join(names) or 'some'})")
    table = np.array([[features[layer][name] for name in names] for layer in layers], dtype=np.float64)
    return np.array([table[list(group)].mean(axis=0) for group in groups])


def _links(problem: Problem) -> list[list[tuple[int, Floats]]]:
    """Per group: the groups before it that it has pair costs with, and these `[their choices, its choices]`.

    Each metric counts in units of its budget (the objective: of its range), so that they can be added; a copy that
    several readers share is shown to each of them in full. All are then scaled to at most 1.
    """
    tables = problem.tables
    result: list[list[tuple[int, Floats]]] = [[] for _ in tables.groups]
    for metric in dict.fromkeys([*problem.budgets, problem.objective]):
        if metric == PEAK:
            continue
        unit = abs(problem.budgets.get(metric, 0.0)) or float(np.abs(tables.unary[metric]).sum()) or 1.0
        pairs = tables.pairs[metric]
        for number, (first, second) in enumerate(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)):
            matrix = pairs.matrix(number) / unit
            result[max(first, second)].append((first, matrix) if first < second else (second, matrix.T))
        for fan_out in tables.fan_outs:
            if fan_out.metric != metric or fan_out.producer < 0:
                continue
            for reader, columns in fan_out.readers:
                if reader > fan_out.producer:
                    result[reader].append((fan_out.producer, fan_out.costs[fan_out.rows[:, None], columns] / unit))
    highest = max((float(np.abs(costs).max()) for links in result for _, costs in links), default=0.0)
    if not highest:
        return []
    return [[(before, costs / highest) for before, costs in links] for links in result]
