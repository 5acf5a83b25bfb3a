"""Evaluators: a policy in, a `Measurement` out. To add a metric or a loss: one function and one line in `base.py`."""

from haq.evaluate.base import LOSSES, METRICS, Evaluator
from haq.evaluate.fine_tuning import FineTuner
from haq.evaluate.mixed import MixedModel, check_not_folded
from haq.evaluate.ptq import PTQEvaluator
from haq.evaluate.qat import QATEvaluator
from haq.evaluate.scoring import Scoring, SplitEvaluator
from haq.execute import LocalExecutor

__all__ = [
    "LOSSES",
    "METRICS",
    "Evaluator",
    "FineTuner",
    "LocalExecutor",
    "MixedModel",
    "PTQEvaluator",
    "QATEvaluator",
    "Scoring",
    "SplitEvaluator",
    "check_not_folded",
]
