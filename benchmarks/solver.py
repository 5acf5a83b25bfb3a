"""Solver time against plain integer programming: `python benchmarks/solver.py [--layers 100 300 1000 5000]`.

Chains of layers with 25 choices each, two budgets and switching costs between neighbours. For each size, in one run:

- bound: Lagrangian bound and repaired policy alone, to a proven gap of 0.1 %;
- exact: proven optimum (or what the time limit left open);
- plain: the same model handed whole to the solver (local-polytope flows, no bounding and fixing), to 0.1 %.

Times are wall seconds on this machine, problems already in memory; the ratio is plain over bound.
"""

from __future__ import annotations

import argparse
import time

from rich.console import Console
from rich.table import Table

from haq.problem.problem import Problem
from haq.solve.engines import available_solvers
from haq.solve.solve import Solution, solve
from haq.testing import chain_document

GAP = 1e-3


def gap(solution: Solution) -> str:
    """The proven gap in per cent."""
    if not solution.values:
        return "none found"
    value = solution.values[0]
    return f"{100 * (value - solution.bound) / abs(value):.4f} %"


def timed(problem: Problem, **options: object) -> tuple[Solution, float]:
    began = time.perf_counter()
    solution = solve(problem, **options)  # type: ignore[arg-type]
    return solution, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[100, 300, 1000, 5000])
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for each exact and each plain solve")
    parser.add_argument("--solver", default="auto", choices=["auto", *available_solvers()])
    parser.add_argument("--repeats", type=int, default=5, help="of the bound; the median is shown")
    args = parser.parse_args()
    columns = "layers", "choices", "bound s", "gap", "exact s", "gap", "plain s", "gap", "plain / bound"
    table = Table(*columns, title=f"Two budgets, chain switching, solver {args.solver}")
    for layers in args.layers:
        problem = Problem.from_doc(chain_document(layers))
        runs = [timed(problem, gap=GAP, solver=args.solver) for _ in range(args.repeats)]
        bounded, bound_seconds = sorted(runs, key=lambda run: run[1])[len(runs) // 2]
        options = {"time_limit": args.time_limit, "solver": args.solver}
        exact, exact_seconds = timed(problem, **options)
        plain, plain_seconds = timed(problem, gap=GAP, presolve=False, **options)
        table.add_row(
            f"{layers}",
            f"{len(problem.tables.group_of)}",
            *(f"{bound_seconds:.3f}", gap(bounded)),
            *(f"{exact_seconds:.2f}", gap(exact)),
            *(f"{plain_seconds:.2f}", gap(plain)),
            f"{plain_seconds / bound_seconds:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
