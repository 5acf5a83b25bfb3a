"""Policies of other strategies, of files and of earlier runs as the first proposals of any strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from haq.search.strategy import SearchStrategy
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Trial

Reader = Callable[[str, int], list[Policy]]
"""`(source, count)` -> up to `count` policies within budget, of a source that is no strategy."""


def no_files(source: str, count: int) -> list[Policy]:
    """The reader where there are no files.

    Raises:
        InputError: always.
    """
    del count
    raise InputError(f"warm_start = {source!r}: unknown; name a strategy")


def warm_sources(strategy: type[SearchStrategy], options: Mapping[str, Any]) -> tuple[list[str], int]:
    """Where the first policies come from by these options or the strategy's default, and how many of each source.

    Raises:
        InputError: a number without a source.
    """
    source, count = strategy.variant_of(options).default_warm_start(options)
    source = options.get("warm_start", source)
    sources = [name for name in ([source] if isinstance(source, str) else source) if name not in ("", "none")]
    if not sources and "warm_start_policies" in options:
        raise InputError("search.options.warm_start_policies: needs warm_start = a strategy, a policy file or a run")
    return sources, options.get("warm_start_policies", count)


class WarmStarted(SearchStrategy):
    """Proposes given policies first, then what another strategy proposes, which learns from all of them.

    Args:
        strategy: the other one.
        policies: makes the policies, valid and within budget, when they are first needed.
    """

    def __init__(self, strategy: SearchStrategy, policies: Callable[[], list[Policy]]) -> None:
        self._strategy, self._make = strategy, policies
        self._seen: set[str] = set()

    @cached_property
    def _first(self) -> list[Policy]:
        return list(dict.fromkeys(self._make()))

    def suggest(self, count: int) -> list[Policy]:
        """The next of the given policies, then the strategy's own.

        Raises:
            InfeasibleError: nothing is within budget.
        """
        result = self._new(self._first)[:count]
        self._seen.update(policy.key for policy in result)
        while len(result) < count and (proposed := self._strategy.suggest(count - len(result))):
            new = self._new(proposed)
            self._seen.update(policy.key for policy in new)
            result += new
        return result

    def update(self, trials: Sequence[Trial]) -> None:
        """The strategy learns from all trials, whoever proposed them."""
        self._seen.update(trial.policy.key for trial in trials)
        self._strategy.update(trials)

    def _new(self, policies: Sequence[Policy]) -> list[Policy]:
        return [policy for policy in policies if policy.key not in self._seen]
