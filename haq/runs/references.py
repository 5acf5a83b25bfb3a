"""What an answer stands beside: the float model's costs, and plain uniform 8 bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haq.evaluate import SplitEvaluator
from haq.experiment.experiment import Experiment
from haq.hardware.costs import cost_report
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Measurement, Trial


class TestedOnce:
    """Scores on the test split, each policy once: answer, baselines and references are often the same.

    Args:
        evaluator: of the test split.
    """

    def __init__(self, evaluator: SplitEvaluator) -> None:
        self.evaluator = evaluator
        self._known: dict[str, Measurement] = {}

    def __call__(self, policy: Policy) -> Measurement:
        if policy.key not in self._known:
            self._known[policy.key] = self.evaluator(policy)
        return self._known[policy.key]


def eight_bit(experiment: Experiment, trials: Sequence[Trial], test: TestedOnce) -> dict[str, Any]:
    """Uniform 8 bit, or what is nearest to it on the device, inside the budgets or not: its costs and its scores.

    It is measured once, after training only where the search itself measured it: a reference is not worth a training.
    """
    policy = experiment.reference_policy
    entry: dict[str, Any] = {
        "name": "uniform 8 bit",
        "source": "reference",
        "policy": policy.to_doc(),
        "costs": dict(cost_report(experiment.network, experiment.cost_model, policy).totals),
        "score": None,
        "test_score": None,
    }
    known = next((trial for trial in trials if trial.policy.key == policy.key and trial.measurement.ok), None)
    if known is None and experiment.config.evaluator.trains:
        return entry
    try:
        found = experiment.evaluator("search")(policy) if known is None else known.measurement
        tested = test(policy)
    except InputError:  # the model cannot be measured in it; its costs stand
        return entry
    entry["score"] = found.score if found.ok else None
    entry["test_score"] = tested.score if tested.ok else None
    entry["test_noise"] = tested.details.get("score_error")
    return entry
