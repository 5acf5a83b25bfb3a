"""Evaluators: a policy in, a `Measurement` out. To add a metric or a loss: one function and one line in `base.py`.

In: a quantized model, a split, a policy. Out: its score, its standard error, its seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from haq.edges.lazy import callable_room, lazy_names

if TYPE_CHECKING:
    from haq.evaluate.base import LOSSES, METRICS, Evaluator
    from haq.evaluate.ptq import PTQEvaluator
    from haq.evaluate.qat import QATEvaluator
    from haq.evaluate.scoring import Scoring, SplitEvaluator

__all__ = [
    "LOSSES",
    "METRICS",
    "Evaluator",
    "PTQEvaluator",
    "QATEvaluator",
    "Scoring",
    "SplitEvaluator",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "haq.evaluate.base": ("Evaluator", "LOSSES", "METRICS"),
        "haq.evaluate.ptq": ("PTQEvaluator",),
        "haq.evaluate.qat": ("QATEvaluator",),
        "haq.evaluate.scoring": ("Scoring", "SplitEvaluator"),
    },
)

callable_room(__name__, "haq.api", "evaluate")
