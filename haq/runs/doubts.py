"""Reasons to distrust a result that its own numbers give: warnings, not errors."""

from __future__ import annotations

import math
from collections.abc import Iterable

from haq.evaluate import SplitEvaluator
from haq.values.trial import Trial

_ERRORS = 2.0
"""Standard errors within which scores count as equal."""


def float_doubts(evaluator: SplitEvaluator) -> list[str]:
    """Whether the float model scores no better than one answer for all inputs: nothing can then be told by scores."""
    measured, chance = evaluator.float_measurement(), evaluator.chance_score()
    if chance is None or not measured.ok:
        return []
    noise = _ERRORS * measured.details.get("score_error", 0.0)
    if measured.score > chance + noise:
        return []
    return [
        f"the float model scores {measured.score:.4g} on the {evaluator.samples} samples of the search split, at "
        f"chance level (the same answer for every input scores {chance:.4g}): check model, weights and data; scores of "
        "policies say nothing"
    ]


def split_doubts(answer: Trial, baselines: Iterable[Trial | None], *, samples: int) -> list[str]:
    """Whether the search split has too few samples to tell the answer from any other policy that it is compared with.

    Args:
        answer: of the search.
        baselines: what the verdict compares it with.
        samples: of the search split that are scored.
    """
    others = [trial for trial in baselines if trial is not None and trial.measurement.ok]
    others = [trial for trial in others if trial.policy != answer.policy]
    leads = [(answer.measurement.score - trial.measurement.score, _noise(answer, trial), trial) for trial in others]
    if not leads or any(noise is None or abs(lead) > noise for lead, noise, _ in leads):
        return []
    lead, noise, trial = max(leads, key=lambda entry: abs(entry[0]))
    return [
        f"the search split ({samples} samples) is too small for the differences between policies: the answer scores "
        f"{lead:+.3g} against {trial.source}, with noise of ±{noise:.3g}; the choice among them is luck unless more "
        "samples are scored (evaluator.samples, a larger search split)"
    ]


def _noise(first: Trial, second: Trial) -> float | None:
    errors = [trial.measurement.details.get("score_error") for trial in (first, second)]
    return None if None in errors else _ERRORS * math.hypot(*(error for error in errors if error is not None))
