"""Policies of one strategy as the first proposals of another."""

from __future__ import annotations

from typing import Literal

from haq.problem import Problem
from haq.search.greedy import Greedy
from haq.search.ilp import ILP
from haq.types import Policy

WarmStart = Literal["none", "", "greedy", "ilp"]
"""`none` and the empty text are the same."""


def warm_policies(problem: Problem, source: WarmStart, count: int) -> list[Policy]:
    """The policies to begin with: the `count` best of the integer program, the one of `greedy`, or none.

    Raises:
        InfeasibleError: the strategy asked found nothing within budget.
    """
    if source in ("none", ""):
        return []
    return (ILP(problem) if source == "ilp" else Greedy(problem)).suggest(count)
