"""What was measured: costs, measurements, trials."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from haq.values.policy import Policy

METRICS = ("latency_ms", "energy_mj", "size_bytes", "peak_activation_bytes", "bops")
"""The cost metrics, with their units in their names, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What running a model, a layer or a switch costs. A field that a cost model does not model stays 0."""

    latency_ms: float = 0.0
    energy_mj: float = 0.0
    size_bytes: float = 0.0
    peak_activation_bytes: float = 0.0
    bops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def to_doc(self, metrics: Iterable[str] = METRICS) -> dict[str, float]:
        return {metric: getattr(self, metric) for metric in METRICS if metric in set(metrics)}


@dataclass(frozen=True, slots=True)
class Measurement:
    """What an evaluator found a policy to be worth.

    Attributes:
        score: larger is better (accuracy in per cent for classification); NaN when the evaluation failed.
        fidelity: `ptq`, `bn`, `qat`, ...
        seconds: wall time of the evaluation.
        details: further figures (`loss`, ...).
        error: why it failed, empty otherwise.
    """

    score: float
    fidelity: str
    seconds: float = 0.0
    details: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error and math.isfinite(self.score)

    def to_doc(self) -> dict[str, Any]:
        doc: dict[str, Any] = {"score": self.score if math.isfinite(self.score) else None, "fidelity": self.fidelity}
        doc |= {"seconds": self.seconds, "details": dict(self.details)}
        return doc | ({"error": self.error} if self.error else {})

    @classmethod
    def from_doc(cls, doc: Any) -> Measurement:
        """Read what `to_doc` wrote.

        Raises:
            ValueError: names the key that is missing or holds something else.
        """
        score = None if _take(doc, "score", object) is None else _number(doc, "score")
        details = _take(doc, "details", Mapping, {})
        return cls(
            math.nan if score is None else score,
            _take(doc, "fidelity", str),
            _number(doc, "seconds", 0.0),
            # What a metric says beside its score may be no number: not finite, so `None` in JSON.
            {name: math.nan if value is None else _number(details, name) for name, value in details.items()},
            _take(doc, "error", str, ""),
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """One policy of a search, what the tables predict it costs, and what it measured.

    Attributes:
        number: 0, 1, 2, ... in the order in which the search proposed.
        source: the strategy that proposed it, or `uniform` / `greedy` for the baselines.
        costs: metric -> predicted value, `sensitivity` among them.
    """

    number: int
    source: str
    policy: Policy
    costs: Mapping[str, float]
    measurement: Measurement

    def to_doc(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "source": self.source,
            "policy": self.policy.to_doc(),
            "costs": dict(self.costs),
            "measurement": self.measurement.to_doc(),
        }

    @classmethod
    def from_doc(cls, doc: Any) -> Trial:
        """Read what `to_doc` wrote.

        Raises:
            ValueError: names the key that is missing or holds something else.
        """
        number, costs = _take(doc, "number", int), _take(doc, "costs", Mapping)
        if isinstance(number, bool) or number < 0:
            raise ValueError(f"number: expected 0, 1, 2, ..., got {number!r}")
        return cls(
            number,
            _take(doc, "source", str),
            Policy.from_doc(_take(doc, "policy", Mapping)),
            {metric: _number(costs, metric) for metric in costs},
            Measurement.from_doc(_take(doc, "measurement", Mapping)),
        )


_MISSING = object()


def _take(doc: Any, key: str, kind: type, default: Any = _MISSING) -> Any:
    """The value of `key`, if it is of that kind."""
    value = doc.get(key, default) if isinstance(doc, Mapping) else _MISSING
    if value is _MISSING:
        raise ValueError(f"{key}: missing")
    if not isinstance(value, kind):
        raise ValueError(f"{key}: expected {_KINDS[kind]}, got {value!r:.80}")
    return value


_KINDS: Mapping[type, str] = {int: "a whole number", str: "text", Mapping: "an object"}


def _number(doc: Any, key: str, default: Any = _MISSING) -> float:
    value = _take(doc, key, object, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise ValueError(f"{key}: expected a finite number, got {value!r:.80}")
    return float(value)


_LARGEST = sys.float_info.max
