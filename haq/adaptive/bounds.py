"""What held-out samples guarantee: exact binomial bounds, and thresholds that keep to a target with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from scipy.stats import beta

T = TypeVar("T")


def lower_bound(hits: int, samples: int, delta: float) -> float:
    """With probability 1 - delta or more, the true share is at least this (Clopper and Pearson, 1934).

    Args:
        hits: of `samples` independent ones.
        samples: one or more.
        delta: of one side.
    """
    return 0.0 if hits == 0 else float(beta.ppf(delta, hits, samples - hits + 1))


def upper_bound(hits: int, samples: int, delta: float) -> float:
    """With probability 1 - delta or more, the true share is at most this."""
    return 1.0 if hits == samples else float(beta.ppf(1.0 - delta, hits + 1, samples - hits))


def last_that_holds(candidates: Sequence[T], holds: Callable[[T], bool]) -> T | None:
    """The last of `candidates`, the safest first, before the first that fails; `None` where the safest fails.

    Testing in a fixed order and stopping at the first failure keeps the error of one test for all of them (fixed
    sequence testing; Angelopoulos et al., "Learn then test", 2021): many thresholds need no correction.
    """
    found = None
    for candidate in candidates:
        if not holds(candidate):
            break
        found = candidate
    return found
