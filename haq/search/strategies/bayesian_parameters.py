"""The decisions of a problem as named parameters, weight and activation formats apart where all pairs may be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from haq.problem.problem import Problem
from haq.problem.tables import Ints
from haq.values.formats import Format


@dataclass(frozen=True)
class _Decision:
    """The parameters of one group (those with one value included), and its choice for each of their positions."""

    names: tuple[str, ...]
    choices: Mapping[tuple[int, ...], int]


class Parameters:
    """Translates between assignments and one position per parameter.

    A group whose choices are all pairs of some weight and activation formats has two parameters, `layer weight` and
    `layer activation`; any other has one, `layer`. Groups bound by one activation tie share the parameter of their
    activation format where their formats are alike; other ties are left to `Problem.repair`.

    Attributes:
        axes: parameter -> its values' names; formats in the order of their bits. Fixed decisions have none.
        ordered: the parameters whose values have an order.
    """

    def __init__(self, problem: Problem) -> None:
        self.axes: dict[str, tuple[str, ...]] = {}
        self.ordered: set[str] = set()
        self._tables = problem.tables
        shared = _shared(problem)
        self._decisions = [self._decision(problem, group, shared) for group in range(len(problem.groups))]

    def _decision(self, problem: Problem, group: int, shared: Mapping[int, str]) -> _Decision:
        precisions = problem.choices(problem.groups[group][0])
        name = problem.groups[group][0]
        if (product := _product(problem, group)) is None:
            choices = _allowed(problem, group)
            self._add(name, tuple(f"{index}: {precisions[index]}" for index in choices), ordered=False)
            return _Decision((name,), {(position,): choice for position, choice in enumerate(choices)})
        weights, activations, choices_at = product
        names = (f"{name} weight", shared.get(group, f"{name} activation"))
        for axis, formats in zip(names, (weights, activations), strict=True):
            self._add(axis, tuple(entry.name for entry in formats), ordered=True)
        return _Decision(names, choices_at)

    def _add(self, name: str, labels: tuple[str, ...], *, ordered: bool) -> None:
        if len(labels) > 1:
            self.axes[name] = labels
            if ordered:
                self.ordered.add(name)

    def assignment(self, positions: Mapping[str, int]) -> Ints:
        """The assignment that a position for each parameter stands for; it may break ties and budgets."""
        chosen = [entry.choices[tuple(positions.get(name, 0) for name in entry.names)] for entry in self._decisions]
        return np.array(chosen, dtype=np.int64)

    def positions(self, assignment: Ints) -> dict[str, int]:
        """The position of each parameter, in the order of `axes`."""
        found: dict[str, int] = {}
        for entry, choice in zip(self._decisions, assignment.tolist(), strict=True):
            key = next(key for key, value in entry.choices.items() if value == choice)
            found |= dict(zip(entry.names, key, strict=True))
        return {name: found[name] for name in self.axes}


def _allowed(problem: Problem, group: int) -> list[int]:
    tables = problem.tables
    return [int(c) for c in np.flatnonzero(tables.allowed[tables.start[group] : tables.start[group + 1]])]


def _product(problem: Problem, group: int) -> tuple[list[Format], list[Format], dict[tuple[int, ...], int]] | None:
    """Weight formats, activation formats, and the choice for each pair of them, if each pair is one choice."""
    precisions, allowed = problem.choices(problem.groups[group][0]), _allowed(problem, group)
    weights = sorted({precisions[c].weight for c in allowed}, key=lambda entry: (entry.bits, entry.name))
    activations = sorted({precisions[c].activation for c in allowed}, key=lambda entry: (entry.bits, entry.name))
    choices: dict[tuple[int, ...], int] = {
        (weights.index(precisions[c].weight), activations.index(precisions[c].activation)): c for c in allowed
    }
    full = len(choices) == len(allowed) == len(weights) * len(activations)
    return (weights, activations, choices) if full else None


def _shared(problem: Problem) -> dict[int, str]:
    """Group -> name of the activation parameter that it shares with the groups that one tie binds it to."""
    members = [[group for group, _ in tie.members] for tie in problem.tables.ties]
    often = [group for groups in members for group in set(groups)]
    result: dict[int, str] = {}
    for tie, groups in zip(problem.tables.ties, members, strict=True):
        alone = all(often.count(group) == 1 for group in groups)
        formats = [_labels(problem, group, labels) for group, labels in tie.members]
        if alone and formats[0] is not None and all(entry == formats[0] for entry in formats):
            result |= dict.fromkeys(groups, f"{tie.layers[0]} activation (tied)")
    return result


def _labels(problem: Problem, group: int, labels: Ints) -> list[set[int]] | None:
    """The tie's label at each position of the group's activation parameter, if it has one."""
    if (product := _product(problem, group)) is None:
        return None
    _, activations, choices = product
    found: list[set[int]] = [set() for _ in activations]
    for (_, position), choice in choices.items():
        found[position].add(int(labels[choice]))
    return found
