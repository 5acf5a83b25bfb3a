"""Controllers that look at the device, not at the input: battery, temperature, deadline, queue."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from haq.adaptive.checks import floats_of, number_of
from haq.adaptive.controller import Signals
from haq.values.errors import InputError


@dataclass(frozen=True)
class Fixed:
    """Always the same member."""

    member: int
    kind: ClassVar[str] = "fixed"

    def choose(self, signals: Signals) -> int:
        return self.member

    def to_doc(self) -> dict[str, Any]:
        return {"member": self.member}

    @classmethod
    def from_doc(cls, document: Mapping[str, Any]) -> Fixed:
        return cls(int(number_of(document, "member", least=0)))


RISING = {"battery": True, "deadline_ms": True, "temperature": False, "queue": False}
"""Signal -> whether more of it allows a more expensive member."""


@dataclass(frozen=True)
class Rule:
    """One signal against thresholds: how expensive a member it allows.

    Attributes:
        signal: a name in `RISING`.
        levels: one less than members, rising: below the first (above the last, for what forbids) the signal allows the
            cheapest member only, and each one that it passes allows the next.
        hysteresis: it must pass a level by so much to allow a more expensive member again.
    """

    signal: str
    levels: tuple[float, ...]
    hysteresis: float = 0.0

    def allows(self, value: float, now: int) -> int:
        """The most expensive member that it allows when `now` is in use."""
        if RISING[self.signal]:
            passed = [value >= level + (self.hysteresis if n >= now else 0.0) for n, level in enumerate(self.levels)]
        else:
            down = list(reversed(self.levels))
            passed = [value <= level - (self.hysteresis if n >= now else 0.0) for n, level in enumerate(down)]
        return next((n for n, one in enumerate(passed) if not one), len(self.levels))


@dataclass
class Ladder:
    """The most expensive member that every rule allows; it goes up one at a time and not too often, down at once.

    The same trace of signals gives the same choices: it has no clock of its own.

    Attributes:
        rules: one or more.
        seconds_between: at least so long after a change before it goes up again.
    """

    rules: tuple[Rule, ...]
    seconds_between: float = 0.0
    kind: ClassVar[str] = "ladder"
    _now: int | None = field(default=None, repr=False, compare=False)
    _changed: float = field(default=-math.inf, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.rules or len({len(rule.levels) for rule in self.rules}) != 1:
            raise InputError("rules: expected one or more, each with one level less than there are members")

    @property
    def members(self) -> int:
        return len(self.rules[0].levels) + 1

    def choose(self, signals: Signals) -> int:
        if signals.member is not None and self._now is not None:
            return signals.member  # it answers with the first that ran
        now = self.members - 1 if self._now is None else self._now
        allowed = min(rule.allows(_signal(signals, rule.signal), now) for rule in self.rules)
        if self._now is None:
            self._now = allowed
        elif allowed < now:
            self._set(allowed, signals)
        elif allowed > now and _time(signals, self.seconds_between) - self._changed >= self.seconds_between:
            self._set(now + 1, signals)
        return self._now if self._now is not None else allowed

    def _set(self, member: int, signals: Signals) -> None:
        self._now, self._changed = member, _time(signals, self.seconds_between)

    def to_doc(self) -> dict[str, Any]:
        rules = [
            {"signal": rule.signal, "levels": list(rule.levels), "hysteresis": rule.hysteresis} for rule in self.rules
        ]
        return {"rules": rules, "seconds_between": self.seconds_between}

    @classmethod
    def from_doc(cls, document: Mapping[str, Any]) -> Ladder:
        rules = document.get("rules")
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            raise InputError(f"rules = {rules!r:.80}: expected a list of signal, levels, hysteresis")
        return cls(
            tuple(_rule(rule) for rule in rules),
            number_of({"seconds_between": 0.0, **document}, "seconds_between", least=0),
        )


def _rule(document: Mapping[str, Any]) -> Rule:
    signal = document.get("signal")
    if signal not in RISING:
        raise InputError(f"rules: signal = {signal!r:.80}: unknown; known: {', '.join(RISING)}")
    levels = floats_of(document, "levels")
    if list(levels) != sorted(set(levels)):
        raise InputError(f"rules: levels = {list(levels)!r:.80}: expected rising numbers")
    return Rule(str(signal), levels, number_of({"hysteresis": 0.0, **document}, "hysteresis", least=0))


def _signal(signals: Signals, name: str) -> float:
    value = getattr(signals, name)
    if value is None or not math.isfinite(value):
        raise InputError(f"controller ladder: the signal {name} is {value!r}; give it with every request")
    return float(value)


def _time(signals: Signals, needed: float) -> float:
    if signals.time is None:
        if needed:
            raise InputError("controller ladder: seconds_between needs the signal time; give it with every request")
        return 0.0
    return signals.time


def replay(controller: Ladder, trace: Iterable[Mapping[str, Any]]) -> list[int]:
    """The choices over a recorded trace, one mapping of signals for each request, as `Signals` names them.

    Raises:
        InputError: an entry with an unknown or a missing signal.
    """
    choices = []
    for number, entry in enumerate(trace):
        try:
            choices.append(controller.choose(Signals(**entry)))
        except TypeError as error:
            raise InputError(f"trace, entry {number}: {error}") from error
    return choices
