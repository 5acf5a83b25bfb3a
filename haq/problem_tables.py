"""The dense tables of a problem: every cost as numpy arrays over decision groups, and how an assignment is priced.

A *decision group* is a set of layers that take the same choice index. An *assignment* is one choice index per group.
A *variable* is one pair (group, choice); the variables of group `g` are `start[g] ... start[g + 1] - 1`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from haq.errors import InputError
from haq.problem_doc import (
    PEAK,
    SENSITIVITY,
    ProblemDoc,
    TensorDoc,
    check_shape,
    precisions,
    tensor_formats,
    tensor_name,
)
from haq.types import Precision

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_LARGEST = 1e100
"""Sums beyond this would overflow once they are weighted."""


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
    """All of a problem but its budgets and objective. Build it with `build`.

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
            return self.steps.totals(assignments).max(axis=1)
        result = self.unary[metric][self.start[:-1] + assignments].sum(axis=1) + self.offsets.get(metric, 0.0)
        if len(self.pairs[metric]):
            result += self.pairs[metric].total(assignments)
        for fan_out in self.fan_outs:
            if fan_out.metric == metric:
                result += fan_out.total(assignments)
        return result

    def respects_ties(self, assignments: Ints) -> Bools:
        """Which rows of `assignments` `[N, G]` agree on the format of every activation tie."""
        result = self.allowed[self.start[:-1] + assignments].all(axis=1)
        for tie in self.ties:
            formats = np.stack([labels[assignments[:, group]] for group, labels in tie.members])
            result &= (formats == formats[0]).all(axis=0)
        return result


def unite(names: Sequence[str], ties: Iterable[Sequence[str]]) -> list[list[int]]:
    """Indices of `names` by connected component of `ties`, in order of their first member (union-find)."""
    index = {name: i for i, name in enumerate(names)}
    parent = list(range(len(names)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for tie in ties:
        for name in tie[1:]:
            low, high = sorted((root(index[tie[0]]), root(index[name])))
            parent[high] = low
    components: dict[int, list[int]] = {}
    for node in range(len(names)):
        components.setdefault(root(node), []).append(node)
    return list(components.values())


class _Builder:
    """Collects what `build` puts into `Tables`; lives only while a document is read."""

    def __init__(self, doc: ProblemDoc, metrics: Sequence[str]) -> None:
        self.doc = doc
        self.names = tuple(layer.name for layer in doc.layers)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.precisions = tuple(precisions(layer) for layer in doc.layers)
        self.groups = unite(self.names, doc.ties)
        self.group = {layer: group for group, members in enumerate(self.groups) for layer in members}
        self.start = np.concatenate([[0], np.cumsum([len(self.precisions[members[0]]) for members in self.groups])])
        self.additive = tuple(metric for metric in metrics if metric != PEAK)
        self.unary = {metric: np.zeros(self.start[-1]) for metric in self.additive}
        self.terms: dict[str, list[tuple[int, int, Floats]]] = {metric: [] for metric in self.additive}
        formats = sorted({precision.activation for choices in self.precisions for precision in choices})
        codes = {name: code for code, name in enumerate(formats)}
        self.labels = [np.array([codes[p.activation] for p in choices]) for choices in self.precisions]
        self.tie_of: dict[int, int] = {}
        for number, members in enumerate(unite(self.names, doc.activation_ties)):
            self.tie_of |= dict.fromkeys(members, number) if len(members) > 1 else {}

    def variables(self, layer: int) -> slice:
        group = self.group[layer]
        return slice(self.start[group], self.start[group + 1])

    def check_ties(self) -> None:
        for members in self.groups:
            sizes = {len(self.precisions[layer]) for layer in members}
            if len(sizes) > 1:
                shown = ", ".join(f"{self.names[layer]} has {len(self.precisions[layer])}" for layer in members)
                raise InputError(f"ties: tied layers need equally many choices, but {shown}")

    def add_layers(self) -> None:
        for layer, entry in enumerate(self.doc.layers):
            where = self.variables(layer)
            self.unary[SENSITIVITY][where] += [choice.sensitivity for choice in entry.choices]
            for metric in entry.choices[0].costs:
                self.unary[metric][where] += [choice.costs[metric] for choice in entry.choices]

    def add_pair(self, metric: str, first: int, second: int, matrix: Floats) -> None:
        """A cost matrix between two layers, each indexed by its own choices."""
        if self.group[first] == self.group[second]:
            self.unary[metric][self.variables(first)] += np.diagonal(matrix)
        else:
            self.terms[metric].append((self.group[first], self.group[second], matrix))

    def add_edges(self) -> None:
        for kind in ("edges", "interactions"):
            for number, entry in enumerate(getattr(self.doc, kind)):
                names = (entry.source, entry.target) if kind == "edges" else tuple(entry.between)
                first, second = (self.index[name] for name in names)
                shape = len(self.precisions[first]), len(self.precisions[second])
                meaning = f"choices of {names[0]} x choices of {names[1]}"
                check_shape(f"{kind}.{number} ({' -> '.join(names)})", entry.costs, *shape, meaning)
                metric = entry.metric if kind == "edges" else SENSITIVITY
                self.add_pair(metric, first, second, np.array(entry.costs, dtype=np.float64))

    def fan_outs(self) -> Iterable[FanOut]:
        for number, tensor in enumerate(self.doc.tensors):
            fan_out = self._tensor(f"tensors.{number} ({tensor_name(tensor)})", tensor)
            if fan_out is not None:
                yield fan_out

    def _tensor(self, where: str, tensor: TensorDoc) -> FanOut | None:
        """The tensor as a fan-out; nothing when it has one reader and became a pair, or a part of one layer's cost."""
        formats = tensor_formats(tensor)
        codes = {name: code for code, name in enumerate(formats)}
        written = len(formats) if tensor.source is not None else 1
        check_shape(where, tensor.costs, written, len(formats), "formats written x formats wanted")
        costs = np.array(tensor.costs, dtype=np.float64)

        def positions(name: str) -> Ints:
            for precision in self.precisions[self.index[name]]:
                if precision.activation not in codes:
                    known = ", ".join(map(str, formats))
                    raise InputError(f"{where}: {name} may use {precision.activation}, which is not among {known}")
            return np.array([codes[precision.activation] for precision in self.precisions[self.index[name]]])

        producer = self.index[tensor.source] if tensor.source is not None else -1
        rows = positions(tensor.source) if tensor.source is not None else np.zeros(1, dtype=np.int64)
        readers: dict[object, tuple[int, Ints]] = {}
        for name in tensor.targets:
            layer, columns = self.index[name], positions(name)
            # Readers that always want the same format are one reader: tied layers, and a layer named twice.
            key = self.tie_of.get(layer, (self.group[layer], columns.tobytes()))
            readers.setdefault(key, (layer, columns))
        if len(readers) == 1:
            ((reader, columns),) = readers.values()
            if producer < 0:
                self.unary[tensor.metric][self.variables(reader)] += costs[0, columns]
            else:
                self.add_pair(tensor.metric, producer, reader, costs[np.ix_(rows, columns)])
            return None
        by_group = tuple((self.group[layer], columns) for layer, columns in readers.values())
        return FanOut(tensor.metric, self.group[producer] if producer >= 0 else -1, rows, by_group, costs)

    def steps(self) -> Steps:
        live: dict[tuple[int, int], Floats] = {}
        for number, step in enumerate(self.doc.peak):
            for name, values in step.live.items():
                layer = self.index[name]
                expected = len(self.precisions[layer])
                if len(values) != expected:
                    raise InputError(
                        f"peak.{number} ({step.step}): {name} has {len(values)} entries, expected {expected}, "
                        "one per choice"
                    )
                key = number, self.group[layer]
                live[key] = live.get(key, np.zeros(expected)) + np.array(values)
        sizes = np.array([len(values) for values in live.values()], dtype=np.int64)
        return Steps(
            tuple(step.step for step in self.doc.peak),
            np.array([step.fixed for step in self.doc.peak]),
            np.array([step for step, _ in live], dtype=np.int64),
            np.array([group for _, group in live], dtype=np.int64),
            np.cumsum(sizes) - sizes,
            np.concatenate([*live.values(), np.empty(0)]),
        )

    def activation_ties(self) -> tuple[tuple[ActivationTie, ...], Bools]:
        """The ties, and which variables they leave possible (a format must be open to every member)."""
        allowed = np.ones(self.start[-1], dtype=np.bool_)
        by_tie: dict[int, list[int]] = {}
        for layer, number in self.tie_of.items():
            by_tie.setdefault(number, []).append(layer)
        changed = True
        while changed:
            before = allowed.copy()
            for layers in by_tie.values():
                shared = set.intersection(*(set(self.labels[i][allowed[self.variables(i)]].tolist()) for i in layers))
                for layer in layers:
                    allowed[self.variables(layer)] &= np.isin(self.labels[layer], list(shared))
                    # Layers of one group take one choice index: their formats must agree there.
                    same = next(other for other in layers if self.group[other] == self.group[layer])
                    allowed[self.variables(layer)] &= self.labels[layer] == self.labels[same]
                if not all(allowed[self.variables(layer)].any() for layer in layers):
                    names = ", ".join(self.names[layer] for layer in layers)
                    raise InputError(f"activation_ties: {names} share no activation format; give them one in common")
            changed = bool((before != allowed).any())
        ties = []
        for layers in by_tie.values():
            members = {self.group[layer]: (self.group[layer], self.labels[layer]) for layer in reversed(layers)}
            if len(members) > 1:
                ties.append(ActivationTie(tuple(members.values()), tuple(self.names[layer] for layer in layers)))
        return tuple(ties), allowed


def build(doc: ProblemDoc, metrics: Sequence[str]) -> Tables:
    """Turn a checked document into tables.

    Raises:
        InputError: matrix shapes, ties or formats that do not fit the layers, or costs whose sum overflows.
    """
    builder = _Builder(doc, metrics)
    builder.check_ties()
    builder.add_layers()
    builder.add_edges()
    fan_outs = tuple(builder.fan_outs())
    ties, allowed = builder.activation_ties()
    steps = builder.steps()
    pairs = {metric: Pairs.build(builder.terms[metric]) for metric in builder.additive}
    parts = {metric: [builder.unary[metric], pairs[metric].flat] for metric in builder.additive}
    for fan_out in fan_outs:
        parts[fan_out.metric].append(fan_out.costs)
    parts[PEAK] = [steps.fixed, steps.flat]
    with np.errstate(over="ignore"):
        for metric, arrays in parts.items():
            if not sum(np.abs(array).sum() for array in arrays) <= _LARGEST:
                raise InputError(f"{metric}: the values add up to more than {_LARGEST:g}; use a larger unit")
    return Tables(
        builder.names,
        builder.precisions,
        tuple(map(tuple, builder.groups)),
        builder.start,
        builder.unary,
        pairs,
        fan_outs,
        steps,
        ties,
        allowed,
        dict(doc.offsets),
    )
