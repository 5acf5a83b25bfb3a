"""What a rule finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that costs accuracy or time, and what to do about it.

    Attributes:
        rule: that found it.
        layer: the layer or the module where it is; for a tensor, the layer that reads it.
        value: the number that the rule looks at.
        meaning: what the number is.
        cost: measured, in `unit`.
        unit: `loss` (increase of the loss on training samples) or `latency_ms`.
        share: of the cost in what the whole network loses at this precision, or in its latency; ranks findings of
            different units.
        advice: what to do.
    """

    rule: str
    layer: str
    value: float
    meaning: str
    cost: float
    unit: str
    share: float
    advice: str

    def to_doc(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "layer": self.layer,
            "value": self.value,
            "meaning": self.meaning,
            "cost": self.cost,
            "unit": self.unit,
            "share": self.share,
            "advice": self.advice,
        }
