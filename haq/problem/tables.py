"""The dense tables of a problem: every cost as numpy arrays over decision groups, and how an assignment is priced.

A *decision group* is a set of layers that take the same choice index. An *assignment* is one choice index per group.
A *variable* is one pair (group, choice); the variables of group `g` are `start[g] ... start[g + 1] - 1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from haq.problem.document import PEAK, SENSITIVITY
from haq.values.formats import Precision

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """Costs of one metric on pairs of groups; the matrices lie one after the other in `flat`.

    Attributes:
        first: group that indexes the rows, per pair.
        second: group that indexes the columns.
        offset: where the matrix begins in `flat`.
        stride: its number of columns.
    """

    first: Ints
    second: Ints
    offset: Ints
    stride: Ints
    flat: Floats

    @classmethod
    def build(cls, terms: Sequence[tuple[int, int, Floats]]) -> Pairs:
        """From `(row group, column group, matrix)`."""
        sizes = np.array([matrix.size for _, _, matrix in terms], dtype=np.int64)
        return cls(
            np.array([first for first, _, _ in terms], dtype=np.int64),
            np.array([second for _, second, _ in terms], dtype=np.int64),
            np.cumsum(sizes) - sizes,
            np.array([matrix.shape[1] for _, _, matrix in terms], dtype=np.int64),
            np.concatenate([matrix.ravel() for _, _, matrix in terms]) if terms else np.empty(0),
        )

    def __len__(self) -> int:
        return len(self.first)

    def matrix(self, index: int) -> Floats:
        """The cost matrix of one pair."""
        begin, stride = self.offset[index], self.stride[index]
        end = self.offset[index + 1] if index + 1 < len(self) else len(self.flat)
        return self.flat[begin:end].reshape(-1, stride)

    def total(self, assignments: Ints) -> Floats:
        """The sum over pairs, for each row of `assignments` `[N, G]`."""
        index = self.offset + assignments[:, self.first] * self.stride + assignments[:, self.second]
        result: Floats = self.flat[index].sum(axis=1)
        return result


@dataclass(frozen=True)
class FanOut:
    """A tensor that several layers read: `costs[row, column]` is charged once per distinct column among the readers.

    Attributes:
        metric: what it costs.
        producer: group of the layer that wrote it, -1 for a tensor written in one fixed format.
        rows: row of `costs` per choice of the producer.
        readers: `(group, column of costs per choice)`.
        costs: `[written formats, wanted formats]`.
    """

    metric: str
    producer: int
    rows: Ints
    readers: tuple[tuple[int, Ints], ...]
    costs: Floats

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups whose choices matter here."""
        return tuple(dict.fromkeys([*([self.producer] if self.producer >= 0 else []), *(g for g, _ in self.readers)]))

    def total(self, assignments: Ints) -> Floats:
        """The charge, for each row of `assignments` `[N, G]`."""
        count = len(assignments)
        row = self.rows[assignments[:, self.producer]] if self.producer >= 0 else np.zeros(count, dtype=np.int64)
        wanted = np.zeros((count, self.costs.shape[1]), dtype=np.bool_)
        for group, columns in self.readers:
            wanted[np.arange(count), columns[assignments[:, group]]] = True
        result: Floats = (wanted * self.costs[row]).sum(axis=1)
        return result


@dataclass(frozen=True)
class Steps:
    """Activation memory per execution step: entry `i` adds `flat[offset[i] + choice of group[i]]` bytes to `step[i]`.

    Attributes:
        names: of the steps.
        fixed: bytes of each step that do not depend on the assignment.
        step: step of each entry, ascending.
        group: group of each entry.
        offset: where the entry's bytes per choice begin in `flat`.
    """

    names: tuple[str, ...]
    fixed: Floats
    step: Ints
    group: Ints
    offset: Ints
    flat: Floats

    def totals(self, assignments: Ints) -> Floats:
        """Bytes `[N, steps]` for each row of `assignments` `[N, G]`."""
        result = np.repeat(self.fixed[None], len(assignments), axis=0)
        if len(self.step):
            steps, begins = np.unique(self.step, return_index=True)
            values = self.flat[self.offset + assignments[:, self.group]]
            result[:, steps] += np.add.reduceat(values, begins, axis=1)
        return result


@dataclass(frozen=True)
class ActivationTie:
    """Groups that must agree on an activation format: `labels[c]` is the format that choice `c` of the group gives."""

    members: tuple[tuple[int, Ints], ...]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Tables:
    """All of a problem but its budgets and objective. `haq.problem.compile` builds it.

    Attributes:
        layers: names, in network order.
        precisions: the choices of each layer.
        groups: layer indices of each decision group.
        start: first variable of each group, and the number of variables at the end.
        unary: additive metric -> cost per variable, `[V]`.
        pairs: additive metric -> pair costs.
        fan_outs: tensors with several readers that may want different formats.
        steps: activation memory per execution step.
        ties: activation ties between groups.
        allowed: variables that the ties leave possible, `[V]`.
        offsets: constant part per additive metric.
    """

    layers: tuple[str, ...]
    precisions: tuple[tuple[Precision, ...], ...]
    groups: tuple[tuple[int, ...], ...]
    start: Ints
    unary: Mapping[str, Floats]
    pairs: Mapping[str, Pairs]
    fan_outs: tuple[FanOut, ...]
    steps: Steps
    ties: tuple[ActivationTie, ...]
    allowed: Bools
    offsets: Mapping[str, float]

    @property
    def sizes(self) -> Ints:
        """Choices per group."""
        return np.diff(self.start)

    @cached_property
    def group_of(self) -> Ints:
        """Group of each variable."""
        return np.repeat(np.arange(len(self.groups)), self.sizes)

    @cached_property
    def choice_of(self) -> Ints:
        """Choice index of each variable."""
        return np.arange(self.start[-1]) - self.start[:-1][self.group_of]

    @cached_property
    def group_of_layer(self) -> Ints:
        """Group of each layer."""
        result = np.empty(len(self.layers), dtype=np.int64)
        for group, members in enumerate(self.groups):
            result[list(members)] = group
        return result

    @property
    def metrics(self) -> tuple[str, ...]:
        """Everything that may be budgeted or be the objective."""
        costs = tuple(metric for metric in self.unary if metric != SENSITIVITY)
        return (*costs, *([PEAK] if self.steps.names else []), SENSITIVITY)

    def total(self, metric: str, assignments: Ints) -> Floats:
        """The value of `metric` for each row of `assignments` `[N, G]`."""
        if metric == PEAK:
            most: Floats = self.steps.totals(assignments).max(axis=1)
            return most
        result: Floats = self.unary[metric][self.start[:-1] + assignments].sum(axis=1) + self.offsets.get(metric, 0.0)
        if len(self.pairs[metric]):
            result += self.pairs[metric].total(assignments)
        for fan_out in self.fan_outs:
            if fan_out.metric == metric:
                result += fan_out.total(assignments)
        return result

    def respects_ties(self, assignments: Ints) -> Bools:
        """Which rows of `assignments` `[N, G]` agree on the format of every activation tie."""
        result: Bools = self.allowed[self.start[:-1] + assignments].all(axis=1)
        for tie in self.ties:
            formats = np.stack([labels[assignments[:, group]] for group, labels in tie.members])
            result &= (formats == formats[0]).all(axis=0)
        return result
