"""The solvers behind PuLP: which are installed, and how each is run and understood."""

from __future__ import annotations

import re
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pulp

from haq.values.errors import InputError

SOLVERS = ("auto", "highs", "cbc")
_PRINTED = 5e-4
"""CBC prints its bound with three decimals."""


@dataclass(frozen=True)
class Outcome:
    """What a solver said of a model that is to be minimised; values are then in the model's variables.

    Attributes:
        found: whether there is a solution.
        bound: no solution is better (`-inf` if unknown, `inf` if proven infeasible).
        proven: whether the search ran to its end, not out of time.
    """

    found: bool
    bound: float
    proven: bool


def choose_solver(name: str) -> str:
    """The solver to run for `auto`, `highs` or `cbc`.

    Raises:
        InputError: unknown, or not installed.
    """
    if name not in SOLVERS:
        raise InputError(f"unknown solver {name!r}; known: {', '.join(SOLVERS)}")
    found = available_solvers()
    if name != "auto" and name not in found:
        raise InputError(f"solver {name!r} is not installed; use {' or '.join([*found, 'auto'])}")
    if not found:
        raise InputError("no integer programming solver is installed; pip install highspy")
    return found[0] if name == "auto" else name


@cache
def available_solvers() -> tuple[str, ...]:
    """Which of `highs` and `cbc` this machine can run, best first."""
    found = {"highs": pulp.HiGHS(msg=False), "cbc": _cbc()}
    return tuple(name for name, solver in found.items() if solver.available())


def minimise(
    model: pulp.LpProblem, solver: str, *, gap: float, time_limit: float | None, start: Mapping[Any, float]
) -> Outcome:
    """Run `highs` or `cbc` on a model.

    Args:
        model: as PuLP has it.
        solver: one of `available_solvers`.
        gap: relative; stop once it is proven.
        time_limit: seconds.
        start: values of a known solution, of some variables (HiGHS only).
    """
    if solver == "highs":
        return _run_highs(model, gap, time_limit, start)
    return _run_cbc(model, gap, time_limit)


class _WarmHiGHS(pulp.HiGHS):  # type: ignore[misc]
    """PuLP's HiGHS with a starting solution."""

    def __init__(self, start: Mapping[Any, float], **options: Any) -> None:
        super().__init__(**options)
        self.start = start

    def callSolver(self, lp: pulp.LpProblem) -> None:
        if self.start:
            index = np.array([variable.index for variable in self.start], dtype=np.int32)
            lp.solverModel.setSolution(len(index), index, np.array(list(self.start.values())))
        super().callSolver(lp)


def _run_highs(model: pulp.LpProblem, gap: float, time_limit: float | None, start: Mapping[Any, float]) -> Outcome:
    model.solve(_WarmHiGHS(start, msg=False, gapRel=gap, gapAbs=0.0, timeLimit=time_limit))
    highs = model.solverModel
    info, status = highs.getInfo(), highs.modelStatusToString(highs.getModelStatus())
    if status == "Infeasible":
        return Outcome(found=False, bound=np.inf, proven=True)
    found = info.primal_solution_status == 2
    integer = model.isMIP()
    bound = info.mip_dual_bound if integer else -np.inf
    if status == "Optimal" and (gap == 0.0 or not integer):
        bound = info.objective_function_value
    return Outcome(found=found, bound=bound, proven=status in ("Optimal", "Empty"))


def _cbc(**options: Any) -> Any:
    """CBC: the one installed beside PuLP, else the one that PuLP before version 4 bundles."""
    engine = pulp.COIN_CMD(msg=False, **options)
    if engine.available() or not hasattr(pulp, "PULP_CBC_CMD"):
        return engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pulp.PULP_CBC_CMD(msg=False, **options)


def _run_cbc(model: pulp.LpProblem, gap: float, time_limit: float | None) -> Outcome:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "cbc.log"
        engine = _cbc(gapRel=gap, gapAbs=0.0, timeLimit=time_limit, logPath=str(log))
        engine.tmpDir = folder
        model.solve(engine)
        text = log.read_text(errors="replace")
    if model.status == pulp.LpStatusInfeasible:
        # Out of time while it prepares, CBC calls a problem infeasible that is not.
        late = time_limit is not None and time.perf_counter() - began > 0.9 * time_limit
        return Outcome(found=False, bound=-np.inf if late else np.inf, proven=not late)
    proven = model.sol_status == pulp.LpSolutionOptimal
    found = proven or model.sol_status == pulp.LpSolutionIntegerFeasible
    bound = (pulp.value(model.objective) or 0.0) if proven else -np.inf
    if match := re.search(r"Lower bound:\s+(\S+)", text):
        bound = float(match[1]) - _PRINTED
    return Outcome(found=found, bound=bound, proven=proven)
