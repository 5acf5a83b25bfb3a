"""A lower bound and good policies fast: Lagrange multipliers on the budgets, min-sum elimination over the pair costs.

Geoffrion, Lagrangean relaxation for integer programming (1974). For multipliers l >= 0 on budgets b,
L(l) = min_x f(x) + sum_m l_m (c_m(x) - b_m) is a lower bound on the optimum. The inner minimum separates into groups
and pairs of groups, which `Elimination` solves exactly on chains, trees and residual networks; a fan-out is bounded
from below by charging each reader an equal part. The best multipliers come from column generation (`_Master`), and
min-marginals of the inner problem tell which choices no policy better than a known one can take.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from haq.problem import Problem
from haq.problem_doc import PEAK
from haq.problem_moves import TOLERANCE, descend, improve
from haq.problem_tables import Bools, Floats, Ints, Tables
from haq.search.elimination import Elimination, Solved

ROUNDING = 1e-12
"""Bounds and values that differ by less, relative to the magnitude of the terms, count as equal."""


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


class _Master:
    """The linear program over known assignments whose duals are the next multipliers (Dantzig and Wolfe, 1960).

    min sum_i f_i w_i + penalty sum_r a_r  subject to  sum_i w_i = 1,  sum_i u_ri w_i - a_r <= 1,  w, a >= 0,
    by the primal simplex method: the basis has one row per budget and one more, and stays optimal up to new columns.
    """

    def __init__(self, rows: int, penalty: float) -> None:
        self.rows, self.penalty = rows, penalty
        identity = np.eye(rows)
        top = np.zeros((1, rows))
        self.columns = np.hstack([np.vstack([top, identity]), np.vstack([top, -identity])])
        self.costs = np.concatenate([np.zeros(rows), np.full(rows, penalty)])
        self.basis: Ints = np.empty(0, dtype=np.int64)

    def add(self, cost: float, usage: Floats) -> None:
        """A new assignment: its objective and its usage of each budget (1 uses it up)."""
        self.columns = np.hstack([self.columns, np.concatenate([[1.0], usage])[:, None]])
        self.costs = np.append(self.costs, cost)
        if not len(self.basis):
            slack = np.where(usage <= 1.0, np.arange(self.rows), self.rows + np.arange(self.rows))
            self.basis = np.concatenate([[len(self.costs) - 1], slack])

    def solve(self) -> tuple[float, Floats]:
        """The value, and the multiplier of each budget row."""
        rhs = np.ones(self.rows + 1)
        for _ in range(50 * (self.rows + 2)):
            matrix = self.columns[:, self.basis]
            duals = np.linalg.solve(matrix.T, self.costs[self.basis])
            reduced = self.costs - duals @ self.columns
            reduced[self.basis] = 0.0
            entering = int(np.argmin(reduced))
            if reduced[entering] >= -1e-11 * max(1.0, float(np.abs(self.costs[self.basis]).max())):
                break
            level = np.linalg.solve(matrix, rhs)
            direction = np.linalg.solve(matrix, self.columns[:, entering])
            positive = direction > 1e-12
            if not positive.any():
                break
            ratio = np.where(positive, np.maximum(level, 0.0) / np.where(positive, direction, 1.0), np.inf)
            self.basis[int(np.argmin(ratio))] = entering
        return float(duals.sum()), np.maximum(-duals[1:], 0.0)

    @property
    def weights(self) -> Floats:
        """The weight of each assignment added so far."""
        result = np.zeros(len(self.costs))
        result[self.basis] = np.linalg.solve(self.columns[:, self.basis], np.ones(self.rows + 1))
        return result[2 * self.rows :]


@dataclass
class Pool:
    """The best distinct assignments within budget seen so far.

    Attributes:
        problem: whose budgets and objective count.
        keep: how many.
        excluded: assignments (as bytes) that do not count.
    """

    problem: Problem
    keep: int = 1
    excluded: frozenset[bytes] = frozenset()
    found: list[tuple[float, Ints]] = field(default_factory=list)

    @property
    def threshold(self) -> float:
        """What a new assignment must beat: the worst kept value, infinity while there is room."""
        return self.found[-1][0] if len(self.found) == self.keep else np.inf

    @property
    def best(self) -> float:
        return self.found[0][0] if self.found else np.inf

    def offer(self, assignments: Ints) -> bool:
        """Take in rows of `[N, G]` that are within budget, new and good enough; says whether one was."""
        values = self.problem.tables.total(self.problem.objective, assignments)
        rows = np.flatnonzero(values < self.threshold)
        rows = rows[self.problem.within(assignments[rows])]
        taken = False
        for row in rows[np.argsort(values[rows], kind="stable")]:
            key = assignments[row].tobytes()
            if values[row] >= self.threshold:
                break
            if key in self.excluded or any(key == other.tobytes() for _, other in self.found):
                continue
            self.found.append((float(values[row]), assignments[row].copy()))
            self.found.sort(key=lambda entry: entry[0])
            del self.found[self.keep :]
            taken = True
        return taken


class Lagrangian:
    """The dual of a problem whose objective is additive. Run `ascend`, then read `bound`, `pool` and `surviving`.

    Args:
        problem: not one that minimises peak memory.
        pool: collects the policies found on the way.
    """

    def __init__(self, problem: Problem, pool: Pool) -> None:
        self.problem, self.pool = problem, pool
        tables = self.tables = problem.tables
        loose = {metric: bound + TOLERANCE * (abs(bound) or 1.0) for metric, bound in problem.budgets.items()}
        self.peak = loose.pop(PEAK, None)
        self.budgets = loose
        metrics = dict.fromkeys([problem.objective, *self.budgets])
        self.relaxation = Relaxation(tables, list(metrics))
        self.scale = {metric: abs(bound) or 1.0 for metric, bound in self.budgets.items()}
        self.steps: list[int] = []
        self.magnitude = _magnitude(tables, problem.objective)
        self.bound = -np.inf
        self.infeasible = False
        self._best: tuple[float, Floats, Minimum] | None = None

    def _usage(self, assignment: Ints) -> Floats:
        """How much of each budget is used, 1 for all of it; then of the active steps."""
        row = assignment[None]
        usage = [
            (self.tables.total(metric, row)[0] - bound) / self.scale[metric] + 1.0
            for metric, bound in self.budgets.items()
        ]
        if self.steps and self.peak is not None:
            usage += list(self.tables.steps.totals(row)[0, self.steps] / self.peak)
        return np.array(usage)

    def _inner(self, multipliers: Floats) -> tuple[float, Minimum]:
        """L(multipliers), as in the module's docstring, and where it is attained."""
        relaxation, tables = self.relaxation, self.tables
        objective = self.problem.objective
        weights = {objective: 1.0}
        cost = relaxation.unary[objective].copy()
        constant = tables.offsets.get(objective, 0.0)
        for (metric, bound), multiplier in zip(self.budgets.items(), multipliers, strict=False):
            weight = multiplier / self.scale[metric]
            weights[metric] = weights.get(metric, 0.0) + weight
            cost += weight * relaxation.unary[metric]
            constant += weight * (tables.offsets.get(metric, 0.0) - bound)
        for step, multiplier in zip(self.steps, multipliers[len(self.budgets) :], strict=True):
            assert self.peak is not None
            weight = multiplier / self.peak
            constant += weight * (tables.steps.fixed[step] - self.peak)
            for entry in np.flatnonzero(tables.steps.step == step):
                group, offset = tables.steps.group[entry], tables.steps.offset[entry]
                where = slice(tables.start[group], tables.start[group + 1])
                cost[where] += weight * tables.steps.flat[offset : offset + where.stop - where.start]
        minimum = relaxation.minimise(cost, weights)
        return minimum.total + constant, minimum

    def ascend(self, *, gap: float = 0.0, deadline: float = np.inf) -> None:
        """Raise the bound until it stops rising, `gap` is met or the deadline (of `time.perf_counter`) has passed."""
        multipliers = np.zeros(len(self.budgets))
        columns: list[tuple[float, Ints]] = []
        penalty = 1e3 * self.magnitude
        while True:
            master = _Master(len(multipliers), penalty)
            for cost, assignment in columns:
                master.add(cost, self._usage(assignment))
            for _ in range(60 + 20 * len(multipliers)):
                value, minimum = self._inner(multipliers)
                if not np.isfinite(value):
                    self.infeasible = True
                    return
                if self._best is None or value > self.bound:
                    self.bound, self._best = value, (value, multipliers, minimum)
                assignment = minimum.assignment()
                self.pool.offer(assignment[None])
                cost = float(self.tables.total(self.problem.objective, assignment[None])[0])
                columns.append((cost, assignment))
                master.add(cost, self._usage(assignment))
                value, multipliers = master.solve()
                if self.bound > self.magnitude * (1 + 1e-9):
                    self.infeasible = True
                    return
                if value - self.bound <= 1e-9 * abs(value) or time.perf_counter() > deadline or self.closed(gap):
                    break
            if time.perf_counter() > deadline or self.closed(gap) or not self._activate(master, columns):
                break
            multipliers = np.concatenate(
                [multipliers, np.zeros(len(self.budgets) + len(self.steps) - len(multipliers))]
            )
        self.columns = [entry for entry, weight in zip(columns, master.weights, strict=True) if weight > 1e-9]

    def closed(self, gap: float) -> bool:
        """Whether the best policy is proven to be within `gap` (relative) of the optimum."""
        if not self.pool.found:
            return False
        return self.pool.best - self.bound <= max(gap * abs(self.pool.best), ROUNDING * self.magnitude)

    def _activate(self, master: _Master, columns: Sequence[tuple[float, Ints]]) -> bool:
        """Give multipliers to execution steps that the mixture of assignments exceeds; says whether there were any."""
        if self.peak is None:
            return False
        totals = self.tables.steps.totals(np.array([assignment for _, assignment in columns]))
        mixed = master.weights @ totals
        over = [int(step) for step in np.argsort(-mixed)[:4] if mixed[step] > self.peak * (1 + 1e-6)]
        added = [step for step in over if step not in self.steps]
        self.steps += added
        return bool(added)

    def polish(self) -> None:
        """Better policies from those that the bound came from: into the budgets, through the slack, pairs exchanged."""
        if self._best is None:
            return
        starts = [assignment for _, assignment in self.columns] + [assignment for _, assignment in self.pool.found[:1]]
        seen: set[bytes] = set()
        near = self.problem.near
        for start in starts:
            assignment, over = descend(near, start)
            if over > 0:
                continue
            assignment = improve(near, assignment)
            if assignment.tobytes() not in seen:
                seen.add(assignment.tobytes())
                self.pool.offer(assignment[None])
        if self.pool.found:
            self.pool.offer(self._exchange(self.pool.found[0][1])[None])

    def widen(self) -> None:
        """Fill a pool for several policies with the neighbours of its best."""
        tables, near = self.tables, self.problem.near
        for _, assignment in list(self.pool.found):
            _, over, joint = near.price(assignment)
            moves = np.flatnonzero(over == 0)
            rows = [near.apply(assignment, int(move), joint) for move in moves[: 64 * self.pool.keep]]
            self.pool.offer(np.array(rows, dtype=np.int64).reshape(-1, len(tables.groups)))

    def _exchange(self, assignment: Ints, *, candidates: int = 400) -> Ints:
        """Take the best pair of single moves that stays within budget, again and again."""
        assert self._best is not None
        problem, tables, near = self.problem, self.tables, self.problem.near
        multipliers = self._best[1]
        while True:
            row = assignment[None]
            value = tables.total(problem.objective, row)[0]
            allowed = near.price(assignment)[1][: len(tables.group_of)] < np.inf
            change = near.after(problem.objective, assignment) - value
            rows = [
                (near.after(metric, assignment) - tables.total(metric, row)[0]) / self.scale[metric]
                for metric in self.budgets
            ]
            room = 1.0 - self._usage(assignment)[: len(rows)]
            reduced = change + sum((m * r for m, r in zip(multipliers, rows, strict=False)), np.zeros(len(change)))
            moves = np.flatnonzero(allowed)
            moves = moves[np.argsort(reduced[moves], kind="stable")[:candidates]]
            gain = change[moves][:, None] + change[moves][None, :]
            fits = tables.group_of[moves][:, None] != tables.group_of[moves][None, :]
            for usage, left in zip(rows, room, strict=True):
                fits &= usage[moves][:, None] + usage[moves][None, :] <= left
            gain = np.where(fits, gain, np.inf)
            best = None
            for index in np.argsort(gain, axis=None)[:20]:
                first, second = np.unravel_index(index, gain.shape)
                if not gain[first, second] < -1e-12 * self.magnitude:
                    break
                trial = assignment.copy()
                for move in (moves[first], moves[second]):
                    trial[tables.group_of[move]] = tables.choice_of[move]
                better = tables.total(problem.objective, trial[None])[0] < value - 1e-12 * self.magnitude
                if better and problem.within(trial[None])[0]:
                    best = trial
                    break
            if best is None:
                return assignment
            assignment = best

    def surviving(self) -> Bools:
        """Variables that a policy better than the pool's threshold (or equal to it) may still choose, `[V]`."""
        if self._best is None or not np.isfinite(self.pool.threshold):
            return self.tables.allowed.copy()
        value, _, minimum = self._best
        floor = minimum.marginals() + (value - minimum.total)
        result: Bools = self.tables.allowed & (floor <= self.pool.threshold + 1e-9 * self.magnitude)
        return result


def _magnitude(tables: Tables, metric: str) -> float:
    """No assignment's value of `metric` is larger than this in size."""
    largest = np.maximum.reduceat(np.abs(tables.unary[metric]), tables.start[:-1]).sum()
    pairs = tables.pairs[metric]
    if len(pairs):
        largest += np.maximum.reduceat(np.abs(pairs.flat), pairs.offset).sum()
    largest += sum(fan.costs.max() * len(fan.readers) for fan in tables.fan_outs if fan.metric == metric)
    return float(largest + abs(tables.offsets.get(metric, 0.0))) or 1.0
