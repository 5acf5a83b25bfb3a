"""The contract of a search strategy, and the one loop that runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from inspect import Parameter, signature
from typing import Annotated, Any, ClassVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from haq.solve.settings import SOLVER_OPTIONS
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Trial

_NOT_OPTIONS = ("seed", "floor", "model")
_WARM_START = {"warm_start": str | list[str], "warm_start_policies": Annotated[int, Field(ge=1)]}
"""Options of every strategy; see `haq.search.warm_start`."""


class SearchStrategy(ABC):
    """Proposes policies and learns from what they measured.

    Built as `Strategy(problem, *, seed, **options)`. The loop calls `suggest` and `update` in turn, and `update` alone
    with the journal's trials when a run resumes; a strategy that got the same updates makes the same next suggestion.
    With several proposals open at once, each is told in the order of proposal, and a resumed run repeats all calls.
    """

    needs_model: ClassVar[bool] = False
    """Whether it is built with `model`, which tables alone do not give."""
    warm_startable: ClassVar[bool] = True
    """Whether others' policies may come before its own."""

    @classmethod
    def variants(cls) -> dict[str, type[SearchStrategy]]:
        """Name -> class, by the option `variant`, where a strategy has variants; the first is the default."""
        return {}

    @classmethod
    def variant_of(cls, options: Mapping[str, Any]) -> type[SearchStrategy]:
        """The class that these options are for.

        Raises:
            InputError: `variant` is none of its variants.
        """
        variants = cls.variants()
        if not variants:
            return cls
        name = options.get("variant", next(iter(variants)))
        if name not in variants:
            raise InputError(f"search.options.variant = {name!r}: unknown; known: {', '.join(variants)}")
        return variants[name]

    @classmethod
    def own_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a search's options that its constructor takes: those of every solve only where it solves itself."""
        keywords = signature(cls).parameters
        return {name: value for name, value in options.items() if name in keywords}

    @classmethod
    def check(cls, objective: str, budgets: Collection[str]) -> None:
        """Refuse a problem that this strategy cannot search, before anything is measured.

        Args:
            objective: what is minimised.
            budgets: the metrics that have one.

        Raises:
            InputError: it cannot; says what could.
        """
        del objective, budgets

    @classmethod
    def default_warm_start(cls, options: Mapping[str, Any]) -> tuple[str, int]:
        """The source of the first policies, and their number, where the user names none; `options` are the user's."""
        del options
        return "none", 1

    @abstractmethod
    def suggest(self, count: int) -> list[Policy]:
        """Up to `count` new policies, valid and within budget; an empty list ends the search.

        While earlier proposals are open, an empty list only means: not before they are measured.
        """

    @abstractmethod
    def update(self, trials: Sequence[Trial]) -> None:
        """Learn from new trials, or from replayed ones on resume. Never called with a policy twice."""


def check_options(strategy: type[SearchStrategy], options: Mapping[str, Any]) -> None:
    """Check a strategy's options against the keyword arguments of its constructor and their annotations.

    Raises:
        InputError: one that it does not have, or of a wrong type or value.
    """
    selects = ["variant"] * bool(strategy.variants())
    strategy = strategy.variant_of(options)
    keywords = [p.name for p in signature(strategy).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    common: Mapping[str, Any] = {**SOLVER_OPTIONS, **(_WARM_START if strategy.warm_startable else {})}
    known = list(dict.fromkeys([*(name for name in keywords if name not in _NOT_OPTIONS), *selects, *common]))
    hints = {**get_type_hints(strategy.__init__, include_extras=True), **common}
    for name, value in options.items():
        if name in selects:
            continue
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"search.options.{name}: no option of {strategy.__name__}; {has}")
        try:
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise InputError(f"search.options.{name} = {value!r}: {reason[0].lower()}{reason[1:]}") from error
