"""The inner problem of the Lagrangian bound: weighted unary and pairwise costs, minimised by elimination.

Choices of a group that have equal pair costs are one *state*; the graph of states is small (activation formats, mostly)
whatever the number of choices. A fan-out is bounded from below by charging each reader an equal part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from haq.problem.tables import Floats, Ints, Tables
from haq.solve.elimination import Elimination, Solved


class Relaxation:
    """Unary and pair costs of some metrics on the *states* of each group: choices of equal pair costs are one state.

    Args:
        tables: the problem's.
        metrics: additive metrics that can be weighted later.
    """

    def __init__(self, tables: Tables, metrics: Sequence[str]) -> None:
        self.tables, self.metrics = tables, tuple(metrics)
        self.unary = {metric: tables.unary[metric].copy() for metric in metrics}
        terms = {metric: _matrices(tables, metric, self.unary[metric]) for metric in metrics}
        ties = [(tie.members, np.unique(np.concatenate([labels for _, labels in tie.members]))) for tie in tables.ties]
        self._find_states([term for metric in metrics for term in terms[metric]], [tie.members for tie in tables.ties])
        groups = len(tables.groups)
        self.size = max([int(self.counts.max()), *(len(formats) for _, formats in ties)])
        # A choice for each state of a group, [G, K]; the first choice as padding.
        self._choice_of_state = np.zeros((groups, self.size), dtype=np.int64)
        self._choice_of_state[self._where] = tables.choice_of[self._sorted[self._begins]]
        pairs = sorted({(min(g, h), max(g, h)) for metric in metrics for g, h, _ in terms[metric]})
        links = [(g, groups + tie) for tie, (members, _) in enumerate(ties) for g, _ in members]
        slot = {pair: index for index, pair in enumerate(pairs)}
        self.pair_tables = {metric: self._stack(terms[metric], slot) for metric in metrics}
        self.link_tables = np.zeros((len(links), self.size, self.size))
        row = 0
        for members, formats in ties:
            for group, labels in members:
                state_labels = labels[self._choice_of_state[group]]
                self.link_tables[row, :, : len(formats)] = np.where(state_labels[:, None] == formats, 0.0, np.inf)
                self.link_tables[row, :, len(formats) :] = self.link_tables[row, :, :1]
                row += 1
        self.tie_pad = np.full((len(ties), self.size), np.inf)
        for tie, (_, formats) in enumerate(ties):
            self.tie_pad[tie, : len(formats)] = 0.0
        hard = frozenset(range(len(pairs), len(pairs) + len(links)))
        self.elimination = Elimination(groups + len(ties), pairs + links, hard=hard)

    @property
    def exact(self) -> bool:
        """Whether minima are true ones: no fan-out split, no pair cost relaxed."""
        return self.elimination.exact and not any(f.metric in self.metrics for f in self.tables.fan_outs)

    def _find_states(
        self, terms: Sequence[tuple[int, int, Floats]], ties: Iterable[tuple[tuple[int, Ints], ...]]
    ) -> None:
        """Number the states: `state[v]` per variable (from 0 in each group), `counts` per group, `_members` inverse."""
        tables = self.tables
        labels: list[tuple[int, Ints]] = [entry for members in ties for entry in members]
        for same in _by_shape(terms).values():
            stack = np.stack([matrix for _, _, matrix in same])
            rows, columns = _equal_rows(stack), _equal_rows(stack.transpose(0, 2, 1))
            labels += [(g, row) for (g, _, _), row in zip(same, rows, strict=True)]
            labels += [(h, column) for (_, h, _), column in zip(same, columns, strict=True)]
        state = np.zeros(tables.start[-1], dtype=np.int64)
        waves: list[list[tuple[int, Ints]]] = []
        depth = [0] * len(tables.groups)
        for group, label in labels:
            if depth[group] == len(waves):
                waves.append([])
            waves[depth[group]].append((group, label))
            depth[group] += 1
        width = int(state.size) + 1
        for wave in waves:
            extra = np.zeros_like(state)
            for group, label in wave:
                extra[tables.start[group] : tables.start[group + 1]] = label
            key = (tables.group_of * width + state) * width + extra
            _, inverse = np.unique(key, return_inverse=True)
            state = inverse - np.minimum.reduceat(inverse, tables.start[:-1])[tables.group_of]
        self.state = state
        self.counts = np.maximum.reduceat(state, tables.start[:-1]) + 1
        first = np.cumsum(self.counts) - self.counts
        self.flat_state = first[tables.group_of] + state
        self._sorted = np.argsort(self.flat_state, kind="stable")
        sizes = np.bincount(self.flat_state)
        self._begins = np.cumsum(sizes) - sizes
        groups = np.repeat(np.arange(len(tables.groups)), self.counts)
        self._where = groups, np.arange(len(groups)) - first[groups]

    def _stack(self, terms: Sequence[tuple[int, int, Floats]], slot: Mapping[tuple[int, int], int]) -> Floats:
        """Pair costs of one metric on states, `[pairs, K, K]`, parallel terms added up."""
        result = np.zeros((len(slot), self.size, self.size))
        for same in _by_shape(terms).values():
            first = self._choice_of_state[[g for g, _, _ in same]]
            second = self._choice_of_state[[h for _, h, _ in same]]
            matrices = np.stack([matrix for _, _, matrix in same])
            values = matrices[np.arange(len(same))[:, None, None], first[:, :, None], second[:, None, :]]
            turned = np.array([g > h for g, h, _ in same])
            values[turned] = values[turned].transpose(0, 2, 1)
            np.add.at(result, [slot[min(g, h), max(g, h)] for g, h, _ in same], values)
        return result

    def minimise(self, cost: Floats, weights: Mapping[str, float]) -> Minimum:
        """The least of `cost` summed over chosen variables plus the weighted pair costs; `cost` is `[V]`."""
        tables = self.tables
        cost = np.where(tables.allowed, cost, np.inf)
        least = np.minimum.reduceat(cost[self._sorted], self._begins)
        unary = np.full((self.elimination.nodes, self.size), np.inf)
        groups = len(tables.groups)
        unary[self._where] = least
        unary[groups:] = self.tie_pad
        pairs: Floats = np.zeros((len(self.elimination.edges), self.size, self.size))
        for metric, weight in weights.items():
            pairs[: len(self.pair_tables[metric])] += weight * self.pair_tables[metric]
        pairs[len(pairs) - len(self.link_tables) :] = self.link_tables
        return Minimum(self, self.elimination.minimise(unary, pairs), cost, least)


def _matrices(tables: Tables, metric: str, unary: Floats) -> list[tuple[int, int, Floats]]:
    """Pair costs of one metric between groups; fan-outs are split evenly, their parts on one group go to `unary`."""
    pairs = tables.pairs[metric]
    result = [(int(pairs.first[i]), int(pairs.second[i]), pairs.matrix(i)) for i in range(len(pairs))]
    for fan_out in tables.fan_outs:
        if fan_out.metric != metric:
            continue
        share = fan_out.costs[fan_out.rows] / len(fan_out.readers)
        for group, columns in fan_out.readers:
            where = slice(tables.start[group], tables.start[group + 1])
            if fan_out.producer < 0:
                unary[where] += share[0, columns]
            elif fan_out.producer == group:
                unary[where] += np.diagonal(share[:, columns])
            else:
                result.append((fan_out.producer, group, share[:, columns]))
    return result


def _by_shape(terms: Iterable[tuple[int, int, Floats]]) -> dict[tuple[int, ...], list[tuple[int, int, Floats]]]:
    result: dict[tuple[int, ...], list[tuple[int, int, Floats]]] = {}
    for term in terms:
        result.setdefault(term[2].shape, []).append(term)
    return result


def _equal_rows(stack: Floats) -> Ints:
    """For each matrix and row, the first row with the same entries: `[matrices, rows]`."""
    weights = np.random.default_rng(0).random(stack.shape[2])
    digest = (stack * weights).sum(axis=2)
    result: Ints = (digest[:, :, None] == digest[:, None, :]).argmax(axis=2)
    same = (np.take_along_axis(stack, result[:, :, None], axis=1) == stack).all(axis=2)
    return np.where(same, result, np.arange(stack.shape[1]))


@dataclass(frozen=True)
class Minimum:
    """The outcome of one `Relaxation.minimise`: a lower bound, where it is attained, and min-marginals."""

    relaxation: Relaxation
    solved: Solved
    cost: Floats
    least: Floats

    @property
    def total(self) -> float:
        return self.solved.total

    def assignment(self) -> Ints:
        """Choices that attain the total."""
        relaxation = self.relaxation
        tables = relaxation.tables
        labels = self.solved.labels()[: len(tables.groups)]
        fits = (relaxation.state == labels[tables.group_of]) & (self.cost == self.least[relaxation.flat_state])
        best = np.flatnonzero(fits)[::-1]
        result = np.zeros(len(tables.groups), dtype=np.int64)
        result[tables.group_of[best]] = tables.choice_of[best]
        return result

    def marginals(self) -> Floats:
        """`[V]`: the least total when a variable is chosen."""
        relaxation = self.relaxation
        group = relaxation.tables.group_of
        by_state = self.solved.marginals()[group, relaxation.state]
        least = self.least[relaxation.flat_state]
        finite = np.isfinite(least)
        return np.where(finite, by_state + self.cost - np.where(finite, least, 0.0), np.inf)
