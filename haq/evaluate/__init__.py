"""Evaluators: a policy in, a `Measurement` out. To add a metric or a loss: one function and one line in `base.py`."""

from haq.evaluate.base import LOSSES, METRICS, Evaluator
from haq.evaluate.ptq import PTQEvaluator
from haq.evaluate.qat import QATEvaluator
from haq.evaluate.scoring import Scoring, SplitEvaluator
from haq.execute import LocalExecutor
from haq.training.fine_tuning import FineTuner
from haq.training.mixed_precision_model import MixedModel, check_not_folded

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
