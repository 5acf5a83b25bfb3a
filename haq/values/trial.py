"""What was measured: costs, measurements, trials."""

from __future__ import annotations

import math
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
    def from_doc(cls, doc: Mapping[str, Any]) -> Measurement:
        score = math.nan if doc["score"] is None else float(doc["score"])
        return cls(score, doc["fidelity"], doc.get("seconds", 0.0), dict(doc.get("details", {})), doc.get("error", ""))


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
    def from_doc(cls, doc: Mapping[str, Any]) -> Trial:
        return cls(
            doc["number"],
            doc["source"],
            Policy.from_doc(doc["policy"]),
            dict(doc["costs"]),
            Measurement.from_doc(doc["measurement"]),
        )
