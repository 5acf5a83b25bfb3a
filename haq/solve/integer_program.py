"""The integer program: exact, modelled in PuLP, solved by HiGHS or CBC.

Choices are binaries x[g, c], one per group. A pair cost between two groups is carried by flows between *classes* of
choices that share a row or column of its matrix (the local polytope; Wainwright and Jordan, 2008, section 4.1): with
f[a, b] >= 0, sum_b f[a, b] = sum_{c in a} x[g, c] and sum_a f[a, b] = sum_{c in b} x[h, c], any cost of either sign is
exact at integral x and the linear relaxation stays tight, where switch variables bounded by differences of x are not.
A fan-out adds z[row, column] >= f_i[row, column] for each reader i, so that each wanted format is charged once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pulp

from haq.problem.document import PEAK
from haq.problem.moves import TOLERANCE
from haq.problem.problem import Problem
from haq.problem.tables import Bools, FanOut, Floats, Ints
from haq.solve.engines import minimise

SLIP = 1e-9
"""By what part of a budget a solver's answer may exceed it."""
_ROW = 1e-6 / SLIP
"""Budget rows are scaled to this right-hand side: the solvers' absolute tolerance is 1e-6.

Tightening the tolerance instead is no way: at 1e-9 HiGHS 1.15 called a policy optimal that was 5e-6 worse than the best
(1,000 layers of 25 choices). What slips through the tolerance is checked against the tables and excluded.
"""
_LARGEST = 1000.0
"""The largest coefficient of the scaled objective."""
_TOLD_APART = 1e-6
"""Scaled objectives that differ by less are equal to the solvers."""
_BEYOND = 1e-6
"""By what part the room up to the cutoff is widened, so that what is cut lies beyond it."""


@dataclass(frozen=True)
class Answer:
    """What a solver said.

    Attributes:
        assignment: the best it found, if any.
        bound: no better objective exists (`-inf` if unknown; `inf` if proven infeasible).
        proven: whether the search ran to its end.
    """

    assignment: Ints | None
    bound: float
    proven: bool


class Model:
    """One integer program over the allowed choices of a problem. Add exclusions, then `solve`.

    Args:
        problem: tables, budgets and objective.
        allowed: variables that may be chosen, `[V]`; at least one per group.
        margin: part of each budget that is kept free.
        cutoff: policies of a larger objective are not told apart. Terms that alone lead beyond it are cut to what does,
            and the solver's tolerances then are a part of what is left, not of the largest term.

    Attributes:
        precision: the solver does not tell objectives apart that differ by less.
        shift: no objective is less.
    """

    def __init__(self, problem: Problem, allowed: Bools, *, margin: float = 0.0, cutoff: float = np.inf) -> None:
        self.problem, self.tables, self.margin, self.cutoff = problem, problem.tables, margin, cutoff
        tables = self.tables
        self.choices = [
            np.flatnonzero(allowed[tables.start[g] : tables.start[g + 1]]) for g in range(len(tables.groups))
        ]
        self.lp = pulp.LpProblem("haq", pulp.LpMinimize)
        self.impossible = 0
        self.x: list[dict[int, Any]] = []
        for group, choices in enumerate(self.choices):
            single = len(choices) == 1
            self.x.append({int(c): 1 if single else self._variable(f"x_{group}_{c}", True) for c in choices})
        metrics = [m for m in dict.fromkeys([problem.objective, *problem.budgets]) if m != PEAK]
        self.unary = {metric: tables.unary[metric].copy() for metric in metrics}
        self.constant = {metric: tables.offsets.get(metric, 0.0) for metric in metrics}
        self.flows: dict[str, list[tuple[Any, float]]] = {metric: [] for metric in metrics}
        for group, entries in enumerate(self.x):
            if len(self.choices[group]) > 1:
                self.lp += pulp.lpSum(entries.values()) == 1
        self._add_pairs(metrics)
        for number, fan_out in enumerate(tables.fan_outs):
            if fan_out.metric in self.unary:
                self._add_fan_out(f"t{number}", fan_out)
        self._add_ties()
        self._add_budgets()
        self._add_objective()

    def _variable(self, name: str, binary: bool = False) -> Any:
        # PuLP 4 attaches variables to the model when they are made; before 3.3 only the constructor was there.
        make = getattr(self.lp, "add_variable", pulp.LpVariable)
        if binary:
            return make(name, cat=pulp.LpBinary)
        return make(name, lowBound=0)

    def _forbid(self) -> None:
        """No solution at all."""
        self.impossible += 1
        self.lp += self._variable(f"impossible_{self.impossible}") <= -1

    def _chosen(self, group: int, among: Iterable[int]) -> Any:
        """How much of a group lies on some of its choices: an expression, or 0 or 1 where it has one choice."""
        entries = self.x[group]
        present = [entries[c] for c in among if c in entries]
        if len(self.choices[group]) == 1:
            return len(present)
        return pulp.lpSum(present)

    def _slice(self, group: int) -> slice:
        return slice(self.tables.start[group], self.tables.start[group + 1])

    def _add_pairs(self, metrics: Sequence[str]) -> None:
        """Merge the pair costs of all metrics by pair of groups; what one side alone decides goes to `unary`."""
        merged: dict[tuple[int, int], dict[str, Floats]] = {}
        for metric in metrics:
            pairs = self.tables.pairs[metric]
            for index in range(len(pairs)):
                g, h, matrix = int(pairs.first[index]), int(pairs.second[index]), pairs.matrix(index)
                if g > h:
                    g, h, matrix = h, g, matrix.T
                entry = merged.setdefault((g, h), {})
                entry[metric] = entry.get(metric, 0.0) + matrix
        for (g, h), by_metric in merged.items():
            self._add_pair(g, h, by_metric)

    def _add_pair(self, g: int, h: int, by_metric: Mapping[str, Floats]) -> None:
        rows, columns = self.choices[g], self.choices[h]
        reduced: dict[str, Floats] = {}
        for metric, matrix in by_metric.items():
            part = matrix[np.ix_(rows, columns)]
            by_row = part.min(axis=1)
            part = part - by_row[:, None]
            by_column = part.min(axis=0)
            self.unary[metric][self._slice(g)][rows] += by_row
            self.unary[metric][self._slice(h)][columns] += by_column
            reduced[metric] = part - by_column
        stack = np.stack(list(reduced.values()))
        if not stack.any():
            return
        _, row_class = np.unique(stack.transpose(1, 0, 2).reshape(len(rows), -1), axis=0, return_inverse=True)
        _, column_class = np.unique(stack.transpose(2, 0, 1).reshape(len(columns), -1), axis=0, return_inverse=True)
        flow = self._flow(f"f_{g}_{h}", (g, rows, row_class.ravel()), (h, columns, column_class.ravel()))
        for metric, matrix in reduced.items():
            for (a, b), variable in flow.items():
                cost = matrix[np.argmax(row_class.ravel() == a), np.argmax(column_class.ravel() == b)]
                if cost:
                    self.flows[metric].append((variable, float(cost)))

    def _flow(
        self, name: str, left: tuple[int, Ints, Ints], right: tuple[int, Ints, Ints]
    ) -> dict[tuple[int, int], Any]:
        """Flow between the classes of two groups; each side is `(group, choices, class of each choice)`."""
        classes = [range(int(side[2].max()) + 1) for side in (left, right)]
        flow = {(a, b): self._variable(f"{name}_{a}_{b}") for a in classes[0] for b in classes[1]}
        for a in classes[0]:
            self.lp += pulp.lpSum(flow[a, b] for b in classes[1]) == self._chosen(left[0], left[1][left[2] == a])
        for b in classes[1]:
            self.lp += pulp.lpSum(flow[a, b] for a in classes[0]) == self._chosen(right[0], right[1][right[2] == b])
        return flow

    def _add_fan_out(self, name: str, fan_out: FanOut) -> None:
        """Charge `costs[row, column]` once for the column however many readers want it."""
        producer = fan_out.producer
        written = fan_out.rows[self.choices[producer]] if producer >= 0 else np.zeros(1, dtype=np.int64)
        rows, row_class = np.unique(fan_out.costs[written], axis=0, return_inverse=True)
        row_class = row_class.ravel()
        costly = np.flatnonzero((rows > 0).any(axis=0))
        charge: dict[tuple[int, int], Any] = {}
        for a in range(len(rows)):
            for column in costly.tolist():
                if rows[a, column] > 0:
                    charge[a, column] = self._variable(f"{name}_z_{a}_{column}")
                    self.flows[fan_out.metric].append((charge[a, column], float(rows[a, column])))
        for number, (group, columns) in enumerate(fan_out.readers):
            wanted = columns[self.choices[group]]
            if producer < 0:
                for (_, column), variable in charge.items():
                    self.lp += variable >= self._chosen(group, self.choices[group][wanted == column])
            elif group == producer:
                for (a, column), variable in charge.items():
                    here = (row_class == a) & (wanted == column)
                    self.lp += variable >= self._chosen(group, self.choices[group][here])
            else:
                # All columns that cost nothing are one class; it may be empty and then carries no flow.
                column_class = np.searchsorted(costly, wanted) * np.isin(wanted, costly)
                column_class = np.where(np.isin(wanted, costly), column_class, len(costly))
                left, right = (producer, self.choices[producer], row_class), (group, self.choices[group], column_class)
                flow = self._flow(f"{name}_{number}", left, right)
                for (a, column), variable in charge.items():
                    position = int(np.searchsorted(costly, column))
                    if (a, position) in flow:
                        self.lp += variable >= flow[a, position]

    def _add_ties(self) -> None:
        for number, tie in enumerate(self.tables.ties):
            for label in np.unique(np.concatenate([labels for _, labels in tie.members])):
                shared = self._variable(f"y_{number}_{label}")
                for group, labels in tie.members:
                    self.lp += shared == self._chosen(group, np.flatnonzero(labels == label))

    def _expression(self, metric: str) -> tuple[list[tuple[Any, float]], float]:
        """The metric as `(variable, coefficient)` terms and a constant."""
        constant, terms = self.constant[metric], list(self.flows[metric])
        for group, entries in enumerate(self.x):
            values = self.unary[metric][self._slice(group)]
            if len(entries) == 1:
                constant += float(values[next(iter(entries))])
                continue
            terms += [(variable, float(values[c])) for c, variable in entries.items() if values[c]]
        return terms, constant

    def _step_expressions(self) -> list[tuple[list[tuple[Any, float]], float]]:
        steps = self.tables.steps
        result: list[tuple[list[tuple[Any, float]], float]] = [([], float(fixed)) for fixed in steps.fixed]
        for step, group, offset in zip(steps.step, steps.group, steps.offset, strict=True):
            terms, constant = result[step]
            values = steps.flat[offset : offset + self.tables.sizes[group]]
            entries = self.x[group]
            if len(entries) == 1:
                result[step] = terms, constant + float(values[next(iter(entries))])
            else:
                terms += [(variable, float(values[c])) for c, variable in entries.items() if values[c]]
        return result

    def _add_budgets(self) -> None:
        for metric, bound in self.problem.budgets.items():
            rows = self._step_expressions() if metric == PEAK else [self._expression(metric)]
            for terms, constant in rows:
                room = bound + (TOLERANCE - self.margin) * (abs(bound) or 1.0) - constant
                scale = _ROW / (abs(bound) or 1.0)
                if not terms and room < 0:
                    self._forbid()
                elif terms:
                    self.lp += pulp.LpAffineExpression([(v, c * scale) for v, c in terms]) <= room * scale

    def _add_objective(self) -> None:
        """The objective, scaled so that its largest coefficient is 1000: tiny sensitivities must not drown."""
        if self.problem.objective == PEAK:
            steps = self._step_expressions()
            largest = max(max(constant, *(c for _, c in terms), 0.0) for terms, constant in steps)
            self.shift, self.scale = 0.0, _LARGEST / (largest or 1.0)
            peak = self._variable("peak")
            for terms, constant in steps:
                scaled = pulp.LpAffineExpression([(v, c * self.scale) for v, c in terms])
                self.lp += peak >= scaled + constant * self.scale
            self.lp += peak
        else:
            self._level()
            terms, self.shift = self._expression(self.problem.objective)
            largest = max((c for _, c in terms), default=0.0)
            # All terms are non-negative by now: what exceeds this room alone is beyond the cutoff whatever the rest is.
            room = (self.cutoff - self.shift) * (1.0 + _BEYOND)
            largest = min(largest, room) if room > 0 else largest
            self.scale = _LARGEST / (largest or 1.0)
            self.lp += pulp.LpAffineExpression([(v, min(c, largest) * self.scale) for v, c in terms])
        self.precision = _TOLD_APART / self.scale

    def _level(self) -> None:
        """Take the least value of each group's choices into the constant."""
        values = self.unary[self.problem.objective]
        for group, choices in enumerate(self.choices):
            least = values[self._slice(group)][choices].min()
            values[self._slice(group)] -= least
            self.constant[self.problem.objective] += float(least)

    def exclude(self, assignment: Ints) -> None:
        """Rule out one assignment."""
        present = [self.x[g].get(int(c)) for g, c in enumerate(assignment)]
        if any(entry is None for entry in present):
            return
        free = [entry for entry in present if not isinstance(entry, int)]
        if not free:
            self._forbid()
        else:
            self.lp += pulp.lpSum(free) <= len(free) - 1

    def solve(
        self, solver: str, *, gap: float = 0.0, time_limit: float | None = None, start: Ints | None = None
    ) -> Answer:
        """Run `highs` or `cbc`.

        Args:
            solver: `highs` or `cbc`.
            gap: relative; stop once it is proven.
            time_limit: seconds.
            start: a known assignment (HiGHS only).
        """
        known = {}
        if start is not None and all(int(c) in self.x[g] for g, c in enumerate(start)):
            known = {v: float(c == start[g]) for g, xs in enumerate(self.x) for c, v in xs.items() if len(xs) > 1}
        outcome = minimise(self.lp, solver, gap=gap, time_limit=time_limit, start=known)
        bound = outcome.bound / self.scale + self.shift
        return Answer(self._read() if outcome.found else None, bound, outcome.proven)

    def _read(self) -> Ints:
        def level(variable: Any) -> float:
            return float(variable if isinstance(variable, int) else variable.value() or 0.0)

        return np.array([max(entries, key=lambda c: level(entries[c])) for entries in self.x], dtype=np.int64)
