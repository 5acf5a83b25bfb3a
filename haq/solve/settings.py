"""How the exact solver is run, wherever a search solves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field

Gap = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Solver = Literal["auto", "highs", "cbc"]


@dataclass(frozen=True)
class SolverSettings:
    """Options of every solve of a run, whatever the strategy: `search.options.gap` and the like.

    Attributes:
        gap: relative gap to the optimum at which a solve may stop.
        time_limit: seconds for each solve; `None`: none.
        solver: `auto`, `highs` or `cbc`.
    """

    gap: float = 0.0
    time_limit: float | None = None
    solver: str = "auto"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SolverSettings:
        """Those among the options of a strategy."""
        return cls(**{field.name: options[field.name] for field in fields(cls) if field.name in options})

    @property
    def keywords(self) -> dict[str, Any]:
        """As keyword arguments of `solve`."""
        return {"gap": self.gap, "time_limit": self.time_limit, "solver": self.solver}

    @property
    def without_gap(self) -> dict[str, Any]:
        """As keyword arguments of `minima`, which proves what it returns."""
        return {"time_limit": self.time_limit, "solver": self.solver}


SOLVER_OPTIONS: Mapping[str, Any] = {"gap": Gap, "time_limit": Seconds | None, "solver": Solver}
"""Option of every strategy -> its type."""
