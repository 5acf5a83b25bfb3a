"""Solve a problem: bound it, fix what cannot be, list what is left or hand it to the integer program."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from haq.problem.document import PEAK
from haq.problem.problem import Problem
from haq.problem.tables import Bools, Ints
from haq.solve.engines import choose_solver
from haq.solve.enumeration import Enumeration
from haq.solve.lagrangian import Lagrangian
from haq.solve.pool import Pool, Status
from haq.values.errors import InfeasibleError

_LISTED = 1 << 16
"""Up to this many assignments are listed and priced rather than modelled."""
_CELLS = 4_000_000
"""And up to this many entries in that list, to keep it in memory."""
_MINIMA_SECONDS = 2.0
_SMALLER = 0.5
"""Bounding starts again while fixing makes the largest terms smaller by this factor."""


@dataclass(frozen=True)
class Solution:
    """What solving found.

    Attributes:
        status: `optimal`: proven, up to a part of 1e-6 of the objective at most, whatever the scale of its terms.
            `feasible`: the time or the gap asked for ended the search, `bound` says how good the
            best is. `infeasible`: proven that nothing is within the budgets. `unknown`: neither found nor excluded in
            the time.
        bound: no policy has a better objective.
        assignments: the best ones, in order.
        values: their objectives.
        seconds: wall time.
    """

    status: Status
    bound: float
    assignments: tuple[Ints, ...]
    values: tuple[float, ...]
    seconds: float


def solve(
    problem: Problem,
    *,
    top: int = 1,
    gap: float = 0.0,
    time_limit: float | None = None,
    solver: str = "auto",
    presolve: bool = True,
    excluded: frozenset[bytes] = frozenset(),
) -> Solution:
    """The best policy within all budgets, or the `top` best.

    Args:
        problem: tables, budgets and objective.
        top: how many, best first, all distinct.
        gap: relative; stop once the best is proven to be this close to the optimum.
        time_limit: seconds, after which the best found so far and its bound are returned.
        solver: `highs`, `cbc` or `auto` (HiGHS where installed).
        presolve: bound and reduce the problem before it is modelled; without, the whole problem is one integer program.
        excluded: assignments (their bytes) that do not count as solutions.

    Raises:
        InputError: unknown or missing solver.
    """
    began = time.perf_counter()
    solver = choose_solver(solver)
    deadline = began + (np.inf if time_limit is None else time_limit)
    pool = Pool(problem, top, excluded)
    status, bound = _search(problem, pool, gap, deadline, solver, presolve)
    values = tuple(value for value, _ in pool.found)
    if status == "optimal":
        bound = pool.best
    seconds = time.perf_counter() - began
    return Solution(status, min(bound, pool.best), tuple(found for _, found in pool.found), values, seconds)


def _search(
    problem: Problem, pool: Pool, gap: float, deadline: float, solver: str, presolve: bool
) -> tuple[Status, float]:
    """Fill the pool; the status and a lower bound."""
    bound, allowed = -np.inf, problem.tables.allowed
    if presolve:
        if problem.objective != PEAK:
            status, bound, allowed = _bounded(problem, pool, gap, deadline)
            if status is not None:
                return status, bound
        if (listed := list_assignments(problem, allowed)) is not None:
            pool.offer(listed)
            return ("optimal" if pool.found else "infeasible"), bound
        if not pool.found:
            with suppress(InfeasibleError):
                pool.offer(problem.affordable[None])
    return Enumeration(problem, pool, allowed, solver=solver, gap=gap, deadline=deadline).run(bound)


def _bounded(problem: Problem, pool: Pool, gap: float, deadline: float) -> tuple[Status | None, float, Bools]:
    """Multipliers raise the bound and fix choices, again on what is left while that has much smaller terms.

    Returns:
        The status where that settles it, a lower bound, and the variables left.
    """
    bound, allowed, magnitude = -np.inf, problem.tables.allowed, np.inf
    while True:
        dual = Lagrangian(problem, pool, allowed)
        dual.ascend(gap=gap, deadline=deadline)
        if dual.infeasible:
            return ("optimal" if pool.found else "infeasible"), np.inf, allowed
        bound = max(bound, min(dual.bound - (0.0 if dual.precise else dual.rounding), pool.threshold))
        if pool.keep > 1 or not dual.closed(gap):
            dual.polish(gap=gap)
        if pool.keep == 1 and dual.closed(gap):
            return ("optimal" if dual.closed(0.0) else "feasible"), bound, allowed
        if pool.keep > 1:
            dual.widen()
        allowed = dual.surviving()
        if not _possible(problem, allowed):
            return ("optimal" if pool.found else "infeasible"), bound, allowed
        if dual.precise or dual.magnitude > _SMALLER * magnitude or time.perf_counter() > deadline:
            return None, bound, allowed
        magnitude = dual.magnitude


def _possible(problem: Problem, allowed: Bools) -> bool:
    return bool(np.logical_or.reduceat(allowed, problem.tables.start[:-1]).all())


def list_assignments(problem: Problem, allowed: Bools) -> Ints | None:
    """Every assignment of allowed choices, `[N, G]`, if they are few."""
    tables = problem.tables
    counts = np.add.reduceat(allowed.astype(np.int64), tables.start[:-1])
    number = float(np.prod(counts.astype(np.float64)))
    if number > _LISTED or number * max(len(counts), len(tables.steps.step)) > _CELLS:
        return None
    choices = [np.flatnonzero(allowed[tables.start[g] : tables.start[g + 1]]) for g in range(len(counts))]
    result = np.empty((int(number), len(counts)), dtype=np.int64)
    repeat = int(number)
    for group, options in enumerate(choices):
        repeat //= len(options)
        result[:, group] = np.resize(np.repeat(options, repeat), int(number))
    return result


def minima(problem: Problem, *, time_limit: float | None = None, solver: str = "auto") -> dict[str, float]:
    """The least achievable value of every budgeted metric, each alone, subject to ties only.

    A metric whose minimum is not proven within the time limit, in seconds for all of them, is left out.
    """
    result = {}
    deadline = time.perf_counter() + (np.inf if time_limit is None else time_limit)
    for metric in problem.budgets:
        left = None if time_limit is None else max(deadline - time.perf_counter(), 0.01)
        alone = solve(problem.with_budgets({}, objective=metric), time_limit=left, solver=solver)
        if alone.status == "optimal":
            result[metric] = alone.values[0]
    return result


def solve_document(
    problem: Problem, *, top: int = 1, gap: float = 0.0, time_limit: float | None = None, solver: str = "auto"
) -> dict[str, Any]:
    """What `haq solve` prints: one JSON document.

    `status`, `objective`, `bound`, `costs`, `policy` and `slack` (budget less cost) of the best policy (null or empty
    where there is none), `minimum` (the least achievable value of every budgeted metric, each alone; where a policy was
    found, only those that are proven in two seconds more), `seconds`, and with `top` above 1 `solutions`.

    Raises:
        InputError: unknown or missing solver.
    """
    began = time.perf_counter()
    solution = solve(problem, top=top, gap=gap, time_limit=time_limit, solver=solver)
    left = np.inf if time_limit is None else max(time_limit - solution.seconds, 0.1)
    left = min(left, _MINIMA_SECONDS) if solution.assignments else left
    documents = [_solution_doc(problem, assignment) for assignment in solution.assignments]
    first: Mapping[str, Any] = (
        documents[0] if documents else {"objective": None, "costs": {}, "policy": None, "slack": {}}
    )
    result: dict[str, Any] = {
        "status": solution.status,
        "objective": first["objective"],
        "bound": float(solution.bound) if np.isfinite(solution.bound) else None,
        "costs": first["costs"],
        "policy": first["policy"],
        "slack": first["slack"],
        "minimum": minima(problem, time_limit=None if left == np.inf else left, solver=solver),
    }
    if top > 1:
        result["solutions"] = documents
    return result | {"seconds": time.perf_counter() - began}


def _solution_doc(problem: Problem, assignment: Ints) -> dict[str, Any]:
    costs = {metric: float(values[0]) for metric, values in problem.evaluate(assignment[None]).items()}
    return {
        "objective": costs[problem.objective],
        "costs": costs,
        "policy": problem.policy(assignment).to_doc(),
        "slack": {metric: bound - costs[metric] for metric, bound in problem.budgets.items()},
    }
