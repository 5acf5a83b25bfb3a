"""How good the answer is, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from haq.values.policy import Policy


def verdict(result: Mapping[str, Any]) -> str:
    """How good the answer is, by the test split, in one sentence; differences within two standard errors are ties."""
    answer = result["answer"]
    if answer["test_score"] is None:
        return "The answer could not be measured on the test split."
    unit = " points" if result["score_unit"] == "%" else ""
    drop = result["accuracy_drop"]["test"]
    size = digits(abs(drop), unit)
    against = f"{size}{unit} {'below' if drop > 0 else 'above'} float" if float(size) else "as float"
    parts = [f"{digits(answer['test_score'], unit)}{result['score_unit'] and ' %'} on the test split, {against}"]
    if "accuracy_drop" in result["budgets"]:
        parts.append(_kept(result["accuracy_drop"], result["budgets"]["accuracy_drop"], unit))
    for name, entry in result["baselines"].items():
        parts.append(_comparison(answer, entry, _label(name, entry), unit, result["objective"]))
    if (best := result.get("best_measured")) is not None:
        lead = digits(best - answer["score"], unit)
        more = f"another policy measured {lead}{unit} more on the search split"
        parts.append(f"{more}, which the fitted model attributes to noise")
    if result["answer_is_baseline"]:
        parts.append(f"the search found nothing better than {answer['source']}, whose policy is the answer")
    return "; ".join(parts) + "."


def digits(value: float, unit: str, *, sign: str = "") -> str:
    """A score as text: two places after the point for points of a percentage, three digits for any other score."""
    return format(value, f"{sign}.2f" if unit else f"{sign}.3g")


def _kept(drop: Mapping[str, float], allowed: float, unit: str) -> str:
    """What became of the accuracy drop that the user allows: the search split keeps to it, the test split may not."""
    words = f"on the search split it loses {digits(drop['search'], unit)} of the {allowed:g}{unit} allowed"
    return words if drop["test"] <= allowed else f"{words}, but more on the test split"


def _label(name: str, entry: Mapping[str, Any] | None) -> str:
    """`uniform w4a4` where one precision says it all, else `uniform`."""
    precisions = {str(precision) for precision in Policy.from_doc(entry["policy"]).values()} if entry else set()
    return f"{name} {precisions.pop()}" if len(precisions) == 1 else name


def _comparison(
    answer: Mapping[str, Any], entry: Mapping[str, Any] | None, name: str, unit: str, objective: str
) -> str:
    if entry is None:
        return f"no {name} policy meets the budgets"
    if entry["policy"] == answer["policy"]:
        return f"the same policy as {name}"
    if entry["test_score"] is None:
        return f"the {name} policy could not be measured"
    difference = answer["test_score"] - entry["test_score"]
    errors = [error for error in (answer["test_noise"], entry["test_noise"]) if error is not None]
    noise = 2.0 * math.hypot(*errors)
    if abs(difference) <= noise:
        words = f"ties with {name} ({digits(difference, unit, sign='+')}{unit}, noise ±{digits(noise, unit)})"
    else:
        known = f"noise ±{digits(noise, unit)}" if errors else "noise unknown"
        words = f"{'beats' if difference > 0 else 'loses to'} {name} by {digits(abs(difference), unit)}{unit} ({known})"
    if objective == "sensitivity":
        return words
    saved = entry["costs"][objective] - answer["costs"][objective]
    return f"{words} and costs {abs(saved):.4g} {'less' if saved > 0 else 'more'} {objective}"
