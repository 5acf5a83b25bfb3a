"""Min-sum elimination: the least total of unary and pairwise costs over a sparse graph, exactly, in numpy.

Nodes of at most two neighbours are eliminated in rounds of independent sets, so a chain of n nodes takes about log n
rounds of batched min-plus products, and every graph of treewidth two (chains, trees, residual networks) is solved
exactly. Where every node left has three neighbours, pair costs are replaced by a separable lower bound, and the result
is a lower bound. Bertele and Brioschi, Nonserial Dynamic Programming (1972); Dechter, Bucket elimination (1999).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from haq.problem.tables import Bools, Floats, Ints


@dataclass(frozen=True)
class _Round:
    """What one round eliminates: nodes alone, nodes with one neighbour, nodes with two. `flip` turns a stored table."""

    alone: Ints
    leaf: Ints
    leaf_to: Ints
    leaf_edge: Ints
    leaf_flip: Bools
    mid: Ints
    left: Ints
    left_edge: Ints
    left_flip: Bools
    right: Ints
    right_edge: Ints
    right_flip: Bools
    out_edge: Ints


def _oriented(tables: Floats, flip: Bools) -> Floats:
    return np.where(flip[:, None, None], tables.transpose(0, 2, 1), tables)


class Elimination:
    """The order of elimination of one graph, found once and run for many costs.

    Args:
        nodes: their number.
        edges: pairs `(u, v)` with u < v, each once.
        hard: edges that must not be relaxed (their tables hold infinities), by index.
    """

    def __init__(self, nodes: int, edges: Sequence[tuple[int, int]], *, hard: frozenset[int] = frozenset()) -> None:
        self.nodes, self.edges = nodes, list(edges)
        plan = self._plan(hard, frozenset())
        if plan is None:
            plan = self._plan(hard, self._outside_forest(hard))
        assert plan is not None, "a forest can always be eliminated"
        self.rounds, self.relaxed = plan

    @property
    def exact(self) -> bool:
        """Whether the minimum is the true one: no pair cost had to be relaxed."""
        return not len(self.relaxed)

    def _outside_forest(self, hard: frozenset[int]) -> frozenset[int]:
        parent = list(range(self.nodes))

        def root(node: int) -> int:
            while parent[node] != node:
                parent[node] = parent[parent[node]]
                node = parent[node]
            return node

        outside = set()
        for edge in sorted(range(len(self.edges)), key=lambda e: e not in hard):
            ends = [root(node) for node in self.edges[edge]]
            if ends[0] == ends[1]:
                outside.add(edge)
            parent[ends[0]] = ends[1]
        return frozenset(outside)

    def _plan(self, hard: frozenset[int], dropped: frozenset[int]) -> tuple[list[_Round], Ints] | None:
        """Rounds and relaxed edges, or nothing if only hard or filled edges are left to relax."""
        slots = list(self.edges)
        near: list[dict[int, int]] = [{} for _ in range(self.nodes)]
        for edge, (u, v) in enumerate(self.edges):
            if edge not in dropped:
                near[u][v] = near[v][u] = edge
        fixed, relaxed, rounds = set(hard), list(dropped), []
        left, candidates = set(range(self.nodes)), list(range(self.nodes))
        while left:
            chosen = self._independent(near, candidates, left)
            if not chosen:
                weakest = self._to_relax(near, left, fixed)
                if weakest is None:
                    return None
                relaxed.append(weakest)
                u, v = slots[weakest]
                del near[u][v], near[v][u]
                candidates = [u, v]
                continue
            before = {neighbour for node in chosen for neighbour in near[node]}
            rounds.append(self._round(chosen, near, slots, fixed))
            left -= set(chosen)
            candidates = sorted((before | set(candidates)) & left)
        self.slots = slots
        return rounds, np.array(sorted(relaxed), dtype=np.int64)

    @staticmethod
    def _independent(near: list[dict[int, int]], candidates: Sequence[int], left: set[int]) -> list[int]:
        """Nodes of at most two neighbours, no two of them adjacent."""
        blocked: set[int] = set()
        chosen = []
        for node in candidates:
            if node in left and len(near[node]) <= 2 and node not in blocked:
                chosen.append(node)
                blocked.update(near[node])
        return chosen

    @staticmethod
    def _to_relax(near: list[dict[int, int]], left: set[int], fixed: set[int]) -> int | None:
        for node in sorted(left, key=lambda n: len(near[n])):
            free = [edge for edge in near[node].values() if edge not in fixed]
            if free:
                return max(free)
        return None

    @staticmethod
    def _round(chosen: list[int], near: list[dict[int, int]], slots: list[tuple[int, int]], fixed: set[int]) -> _Round:
        alone: list[int] = []
        leaves: list[tuple[int, int, int, bool]] = []
        mids: list[tuple[int, int, int, bool, int, int, bool, int]] = []
        for node in chosen:
            links = sorted(near[node].items())
            for other, _ in links:
                del near[other][node]
            if not links:
                alone.append(node)
            elif len(links) == 1:
                ((other, edge),) = links
                leaves.append((node, other, edge, slots[edge][0] == node))
            else:
                (u, left), (w, right) = links
                if w not in near[u]:
                    near[u][w] = near[w][u] = len(slots)
                    slots.append((u, w))
                out = near[u][w]
                fixed.add(out)
                # Tables are wanted as [left, node] and [node, right]; they are stored as [smaller, larger].
                mids.append((node, u, left, slots[left][0] == node, w, right, slots[right][0] != node, out))

        leaf = np.array(leaves, dtype=np.int64).reshape(-1, 4).T
        mid = np.array(mids, dtype=np.int64).reshape(-1, 8).T
        return _Round(
            alone=np.array(alone, dtype=np.int64),
            leaf=leaf[0],
            leaf_to=leaf[1],
            leaf_edge=leaf[2],
            leaf_flip=leaf[3].astype(np.bool_),
            mid=mid[0],
            left=mid[1],
            left_edge=mid[2],
            left_flip=mid[3].astype(np.bool_),
            right=mid[4],
            right_edge=mid[5],
            right_flip=mid[6].astype(np.bool_),
            out_edge=mid[7],
        )

    def minimise(self, unary: Floats, tables: Floats) -> Solved:
        """The least total.

        Args:
            unary: `[nodes, K]`; infinity on what a node may not take, and as padding.
            tables: `[edges, K, K]`, rows for the smaller node; finite copies of valid entries as padding.
        """
        size = unary.shape[1]
        unary = unary.copy()
        table = np.zeros((len(self.slots), size, size))
        table[: len(self.edges)] = tables
        if len(self.relaxed):
            cut = table[self.relaxed]
            cut = np.where(np.isfinite(cut), cut, 0.0)
            rows = cut.min(axis=2)
            columns = (cut - rows[:, :, None]).min(axis=1)
            ends = np.array([self.edges[edge] for edge in self.relaxed])
            np.add.at(unary, ends[:, 0], rows)
            np.add.at(unary, ends[:, 1], columns)
        total = 0.0
        messages: list[tuple[Floats, Floats]] = []
        for step in self.rounds:
            total += float(unary[step.alone].min(axis=1).sum())
            leaf = _oriented(table[step.leaf_edge], step.leaf_flip) + unary[step.leaf][:, None, :]
            to_node = leaf.min(axis=2)
            np.add.at(unary, step.leaf_to, to_node)
            left = _oriented(table[step.left_edge], step.left_flip) + unary[step.mid][:, None, :]
            right = _oriented(table[step.right_edge], step.right_flip)
            to_edge = _min_plus(left, right)
            np.add.at(table, step.out_edge, to_edge)
            messages.append((to_node, to_edge))
        return Solved(self, total, unary, table, messages)


def _min_plus(left: Floats, right: Floats) -> Floats:
    """Batched min-plus matrix product, looping over the summed index to keep memory low."""
    result = left[:, :, 0, None] + right[:, 0, None, :]
    for k in range(1, left.shape[2]):
        np.minimum(result, left[:, :, k, None] + right[:, k, None, :], out=result)
    return result


@dataclass(frozen=True)
class Solved:
    """The outcome of one elimination.

    Attributes:
        total: the least total (a lower bound if pair costs were relaxed); infinite if nothing is possible.
    """

    order: Elimination
    total: float
    _unary: Floats
    _table: Floats
    _messages: list[tuple[Floats, Floats]]

    def labels(self) -> Ints:
        """A state per node that attains the total (of the relaxed costs)."""
        result = np.zeros(self.order.nodes, dtype=np.int64)
        for step in reversed(self.order.rounds):
            result[step.alone] = self._unary[step.alone].argmin(axis=1)
            cost = self._unary[step.leaf] + self._row(step.leaf_edge, ~step.leaf_flip, result[step.leaf_to])
            result[step.leaf] = cost.argmin(axis=1)
            cost = self._unary[step.mid]
            cost = cost + self._row(step.left_edge, ~step.left_flip, result[step.left])
            cost = cost + self._row(step.right_edge, step.right_flip, result[step.right])
            result[step.mid] = cost.argmin(axis=1)
        return result

    def _row(self, edge: Ints, known_first: Bools, state: Ints) -> Floats:
        """Costs over the states of the eliminated node, given the state of the other end."""
        return np.where(known_first[:, None], self._table[edge, state], self._table[edge, :, state])

    def marginals(self) -> Floats:
        """`[nodes, K]`: the least total when a node is forced into a state (of the relaxed costs)."""
        result = np.full_like(self._unary, np.inf)
        if not np.isfinite(self.total):
            return result
        joint = np.full_like(self._table, np.inf)
        for step, (to_node, to_edge) in zip(reversed(self.order.rounds), reversed(self._messages), strict=True):
            own = self._unary[step.alone]
            result[step.alone] = own + (self.total - own.min(axis=1))[:, None]
            # What the rest costs is the joint minimum less this node's own message to it; where the message is
            # infinite nothing of this node is possible anyway.
            rest = _less(result[step.leaf_to], to_node)
            pair = _oriented(self._table[step.leaf_edge], step.leaf_flip) + self._unary[step.leaf][:, None, :]
            pair += rest[:, :, None]
            joint[step.leaf_edge] = _oriented(pair, step.leaf_flip)
            result[step.leaf] = pair.min(axis=1)
            outside = _less(joint[step.out_edge], to_edge)
            left = _oriented(self._table[step.left_edge], step.left_flip)
            right = _oriented(self._table[step.right_edge], step.right_flip)
            own = self._unary[step.mid][:, None, :]
            pair = left + own + _min_plus(outside, right.transpose(0, 2, 1))
            joint[step.left_edge] = _oriented(pair, step.left_flip)
            result[step.mid] = pair.min(axis=1)
            pair = right + own.transpose(0, 2, 1) + _min_plus(left.transpose(0, 2, 1), outside)
            joint[step.right_edge] = _oriented(pair, step.right_flip)
        return result


def _less(whole: Floats, part: Floats) -> Floats:
    finite = np.isfinite(part)
    return np.where(finite, whole - np.where(finite, part, 0.0), 0.0)
