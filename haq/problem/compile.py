"""From a problem document to dense tables, with the checks that need to know the layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from haq.problem.document import (
    PEAK,
    SENSITIVITY,
    ProblemDoc,
    TensorDoc,
    check_shape,
    precisions,
    tensor_formats,
    tensor_name,
)
from haq.problem.tables import ActivationTie, Bools, FanOut, Floats, Ints, Pairs, Steps, Tables
from haq.values.errors import InputError

_LARGEST = 1e100
"""Sums beyond this would overflow once they are weighted."""


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
