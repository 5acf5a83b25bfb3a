"""The best policies that a solve has seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from haq.problem.problem import Problem
from haq.problem.tables import Ints

Status = Literal["optimal", "feasible", "infeasible", "unknown"]
"""How far a search came; see `Solution`."""


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
