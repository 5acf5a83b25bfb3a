"""`Problem`: dense cost tables, budgets and an objective. Every strategy reads this and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from haq.edges.documents import read_json
from haq.problem.breakdown import Contribution, contributions
from haq.problem.compile import build
from haq.problem.document import PEAK, SENSITIVITY, ProblemDoc, check_bounds, check_metrics, check_names, parse, to_doc
from haq.problem.moves import TOLERANCE, Neighbourhood, descend, improve
from haq.problem.moves import excess as _excess
from haq.problem.tables import Bools, Floats, Ints, Pairs, Tables
from haq.problem.ties import cheapest
from haq.values.errors import InfeasibleError, InputError
from haq.values.formats import Precision
from haq.values.policy import Policy

__all__ = ["TOLERANCE", "Contribution", "Problem", "load_problem"]


class Problem:
    """Which precision for which layer, at what cost, within what.

    Build it with `from_doc` or `load_problem`. A policy names layers and precisions; an *assignment* is the same thing
    for arithmetic: one choice index per decision group.
    """

    def __init__(self, doc: ProblemDoc, tables: Tables) -> None:
        self._doc = doc
        self.tables = tables
        self.budgets: dict[str, float] = dict(doc.budgets)
        self.objective: str = doc.objective

    @classmethod
    def from_doc(cls, doc: Mapping[str, Any]) -> Problem:
        """Read a problem document (schema version 1).

        Raises:
            InputError: one line naming the key, the value and the remedy.
        """
        parsed = parse(doc)
        check_names(parsed)
        metrics = check_metrics(parsed)
        check_bounds(parsed, metrics)
        tables = build(parsed, metrics)
        cheapest(tables, np.zeros(tables.start[-1]))
        return cls(parsed, tables)

    def to_doc(self) -> dict[str, Any]:
        """The document that `from_doc` reads back to the same problem."""
        return to_doc(self._doc)

    @cached_property
    def signature(self) -> str:
        """A stable hash of the whole document."""
        text = json.dumps(self.to_doc(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def with_budgets(self, budgets: Mapping[str, float], *, objective: str | None = None) -> Problem:
        """The same problem under other budgets, and another objective if one is given.

        Raises:
            InputError: an unknown metric.
        """
        for name in (*budgets, *([objective] if objective is not None else [])):
            if name not in self.metrics:
                raise InputError(f"unknown metric {name!r}; the problem prices {', '.join(self.metrics)}")
        change = {"budgets": dict(budgets), "objective": objective or self.objective}
        return Problem(self._doc.model_copy(update=change), self.tables)

    def with_sensitivity(self, unary: Floats, pairs: Sequence[tuple[int, int, Floats]] = ()) -> Problem:
        """The same decisions and costs with another predicted loss, for strategies that learn it.

        Args:
            unary: of each variable, `[V]`.
            pairs: `(row group, column group, matrix)` of each interaction; they replace the problem's own.

        Returns:
            A problem to solve: its tables count, while `to_doc`, `breakdown` and `signature` stay this problem's.
        """
        tables = replace(
            self.tables,
            unary={**self.tables.unary, SENSITIVITY: unary},
            pairs={**self.tables.pairs, SENSITIVITY: Pairs.build(pairs)},
            offsets={name: value for name, value in self.tables.offsets.items() if name != SENSITIVITY},
        )
        return Problem(self._doc, tables)

    @property
    def layers(self) -> tuple[str, ...]:
        """Layer names, in network order."""
        return self.tables.layers

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The layers of each decision group: tied layers take the same choice index."""
        return tuple(tuple(self.layers[i] for i in members) for members in self.tables.groups)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Everything that `costs` reports: what may be budgeted or be the objective."""
        return self.tables.metrics

    def choices(self, layer: str) -> tuple[Precision, ...]:
        """The precisions that a layer may take, in order.

        Raises:
            KeyError: unknown layer.
        """
        return self.tables.precisions[self._index[layer]]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.layers)}

    @cached_property
    def _choice(self) -> tuple[dict[Precision, int], ...]:
        return tuple({precision: i for i, precision in enumerate(choices)} for choices in self.tables.precisions)

    def policy(self, assignment: Sequence[int] | Ints) -> Policy:
        """The policy that an assignment stands for."""
        chosen = np.asarray(assignment)[self.tables.group_of_layer]
        pairs = zip(self.layers, self.tables.precisions, chosen.tolist(), strict=True)
        return Policy({name: choices[index] for name, choices, index in pairs})

    def assignment(self, policy: Policy) -> Ints:
        """The choice index of each decision group.

        Raises:
            ValueError: other layers, a precision that is no choice of its layer, or ties that disagree.
        """
        policy.check_layers(self.layers)
        chosen = np.empty(len(self.layers), dtype=np.int64)
        for layer, name in enumerate(self.layers):
            index = self._choice[layer].get(policy[name])
            if index is None:
                known = ", ".join(map(str, self.tables.precisions[layer]))
                raise ValueError(f"layer {name}: {policy[name]} is not among its choices {known}")
            chosen[layer] = index
        result = np.array([chosen[members[0]] for members in self.tables.groups])
        split = np.flatnonzero(result[self.tables.group_of_layer] != chosen)
        if len(split):
            members = self.groups[self.tables.group_of_layer[split[0]]]
            shown = ", ".join(f"{name} {policy[name]}" for name in members)
            raise ValueError(f"tied layers take the same choice, but the policy gives {shown}")
        for tie in self.tables.ties:
            if len({int(labels[result[group]]) for group, labels in tie.members}) > 1:
                shown = ", ".join(f"{name} {policy[name].activation}" for name in tie.layers)
                raise ValueError(f"these layers share one activation format, but the policy gives {shown}")
        return result

    def evaluate(self, assignments: Ints) -> dict[str, Floats]:
        """Every metric for each row of `assignments` `[N, G]`."""
        return {metric: self.tables.total(metric, assignments) for metric in self.metrics}

    def within(self, assignments: Ints) -> Bools:
        """Which rows of `assignments` `[N, G]` respect all ties and exceed no budget by more than `TOLERANCE`."""
        result = self.tables.respects_ties(assignments)
        for metric, bound in self.budgets.items():
            result &= _excess(self.tables.total(metric, assignments), bound) == 0
        return result

    def costs(self, policy: Policy) -> dict[str, float]:
        """Every metric, `sensitivity` and peak memory among them.

        Raises:
            ValueError: the policy does not fit the problem.
        """
        row = self.assignment(policy)[None]
        return {metric: float(values[0]) for metric, values in self.evaluate(row).items()}

    def objective_value(self, policy: Policy) -> float:
        """What is to be made small."""
        return float(self.tables.total(self.objective, self.assignment(policy)[None])[0])

    def violation(self, policy: Policy) -> dict[str, float]:
        """Metric -> amount above its budget, for those exceeded by more than `TOLERANCE`; empty within all budgets."""
        costs = self.costs(policy)
        over = {metric: costs[metric] - bound for metric, bound in self.budgets.items()}
        return {
            metric: amount
            for metric, amount in over.items()
            if _excess(np.array([costs[metric]]), self.budgets[metric])[0] > 0
        }

    @cached_property
    def near(self) -> Neighbourhood:
        """Prices the moves from one assignment to its neighbours."""
        return Neighbourhood(self.tables, objective=self.objective, budgets=self.budgets)

    def nearest(self, policy: Mapping[str, Precision]) -> Policy:
        """The allowed policy closest to a wish: bits missing count more than bits to spare; ties are respected.

        Raises:
            ValueError: `policy` names other layers.
        """
        Policy(policy).check_layers(self.layers)
        distance = np.zeros(self.tables.start[-1])
        for layer, name in enumerate(self.layers):
            group = self.tables.group_of_layer[layer]
            where = slice(self.tables.start[group], self.tables.start[group + 1])
            distance[where] += [_distance(policy[name], choice) for choice in self.tables.precisions[layer]]
        return self.policy(cheapest(self.tables, distance))

    def repair(self, policy: Mapping[str, Precision]) -> Policy:
        """A policy within every budget that respects all ties, found by small steps from the nearest allowed one.

        From there it takes the step of least objective per excess removed; if that gets stuck, it starts again from
        policies that are cheap in the budgeted metrics.

        Raises:
            InfeasibleError: none found. `minimum` then holds the least value of each budgeted metric that was found
                (`haq.solve.solve` proves the least achievable ones).
            ValueError: `policy` names other layers.
        """
        assignment, over = descend(self.near, self.assignment(self.nearest(policy)))
        if over > 0:
            assignment = self.affordable
        return self.policy(assignment)

    @cached_property
    def affordable(self) -> Ints:
        """Some assignment within budget, reached by small steps from the cheapest ones.

        Raises:
            InfeasibleError: as `repair`.
        """
        scaled = {metric: _scaled(self.tables, metric, bound) for metric, bound in self.budgets.items()}
        minimum: dict[str, float] = {}
        for cost in [*scaled.values(), sum(scaled.values())]:
            assignment, over = descend(self.near, cheapest(self.tables, np.asarray(cost)))
            if over == 0:
                return assignment
        for metric, cost in scaled.items():
            alone = Neighbourhood(self.tables, objective=metric, budgets={})
            start = improve(alone, cheapest(self.tables, cost))
            minimum[metric] = float(self.tables.total(metric, start[None])[0])
            assignment, over = descend(self.near, start)
            if over == 0:
                return assignment
        raise InfeasibleError.of(minimum, self.budgets, proven=False)

    def breakdown(self, policy: Policy, metric: str) -> list[Contribution]:
        """The addends of `metric`, in document order: layers, edges, tensors, interactions, offset; or the steps.

        Raises:
            KeyError: unknown metric.
            ValueError: the policy does not fit the problem.
        """
        if metric not in self.metrics:
            raise KeyError(f"unknown metric {metric!r}; the problem prices {', '.join(self.metrics)}")
        assignment = self.assignment(policy)
        if metric == PEAK:
            totals = self.tables.steps.totals(assignment[None])[0].tolist()
            return [Contribution("step", *entry) for entry in zip(self.tables.steps.names, totals, strict=True)]
        chosen = {name: int(assignment[self.tables.group_of_layer[i]]) for i, name in enumerate(self.layers)}
        return list(contributions(self._doc, chosen, policy, metric))


def _distance(wish: Precision, choice: Precision) -> float:
    """0 for the wish itself; bits missing count a hundredfold, a different format of equal bits a little."""
    total = 0.0
    for want, have in ((wish.weight, choice.weight), (wish.activation, choice.activation)):
        missing = max(want.bits - have.bits, 0)
        total += 100.0 * missing + max(have.bits - want.bits, 0) + 0.01 * (want != have)
    return total


def _scaled(tables: Tables, metric: str, bound: float) -> Floats:
    """Cost per variable as a part of the bound; for peak memory, the bytes over all steps."""
    if metric != PEAK:
        return tables.unary[metric] / (abs(bound) or 1.0)
    result = np.zeros(tables.start[-1])
    for group, offset in zip(tables.steps.group, tables.steps.offset, strict=True):
        where = slice(tables.start[group], tables.start[group + 1])
        result[where] += tables.steps.flat[offset : offset + where.stop - where.start]
    return result / (abs(bound) or 1.0)


def load_problem(path: str | Path) -> Problem:
    """Read a problem file.

    Raises:
        InputError: one line naming the file, the key, the value and the remedy.
    """
    file = Path(path)
    doc = read_json(file)
    try:
        return Problem.from_doc(doc)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
