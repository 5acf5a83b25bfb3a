"""The outer problem of the Lagrangian bound: which multipliers to try next."""

from __future__ import annotations

import numpy as np

from haq.problem.tables import Floats, Ints


class Master:
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
