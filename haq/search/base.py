"""The contract of a search strategy, and the one loop that runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from haq.types import Policy, Trial


class SearchStrategy(ABC):
    """Proposes policies and learns from what they measured.

    Built as `Strategy(problem, *, seed, **options)`. The loop calls `suggest` and `update` in turn, and `update` alone
    with the journal's trials when a run resumes; a strategy that got the same updates makes the same next suggestion.
    """

    @abstractmethod
    def suggest(self, count: int) -> list[Policy]:
        """Up to `count` new policies, valid and within budget; an empty list ends the search."""

    @abstractmethod
    def update(self, trials: Sequence[Trial]) -> None:
        """Learn from new trials, or from replayed ones on resume. Never called with a policy twice."""
