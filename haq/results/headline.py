"""How much better the answer is, in one line: against float and against plain uniform 8 bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haq.results.verdict import digits

_WORDS = {
    "size_bytes": ("smaller", "larger"),
    "latency_ms": ("faster", "slower"),
    "energy_mj": ("less energy", "more energy"),
}
_SAME = 0.005
"""Ratios this close to one are called the same."""


def headline(result: Mapping[str, Any]) -> str:
    """`97.2 % (float 97.8 %, uniform 8 bit 97.5 %; noise ±1.1 points): 7.9x smaller, 2.1x faster than float; ...`.

    Args:
        result: the document of a finished search.
    """
    compared = [
        text
        for name, costs in (("float", result["float"].get("costs")), ("uniform 8 bit", _costs(result)))
        if costs and (text := _ratios(result["answer"]["costs"], costs, name))
    ]
    return f"{_scores(result)}: {'; '.join(compared)}." if compared else f"{_scores(result)}."


def _costs(result: Mapping[str, Any]) -> Mapping[str, float] | None:
    """Those of uniform 8 bit; `None` where that is the answer."""
    entry = result.get("eight_bit")
    same = entry is not None and entry["policy"] == result["answer"]["policy"]
    return None if entry is None or same else entry["costs"]


def _scores(result: Mapping[str, Any]) -> str:
    split, key = ("test", "test_score") if result["answer"]["test_score"] is not None else ("search", "score")
    unit = " points" if result["score_unit"] == "%" else ""
    sign = " %" if unit else ""
    known = [("float", result["float"][f"{split}_score"])]
    eight = result.get("eight_bit")
    if eight is not None:
        same = eight["policy"] == result["answer"]["policy"]
        known.append(("the answer is uniform 8 bit", None) if same else ("uniform 8 bit", eight.get(key)))
    beside = [name if value is None else f"{name} {digits(value, unit)}{sign}" for name, value in known]
    beside = [text for text, (name, value) in zip(beside, known, strict=True) if value is not None or "is" in name]
    noise = result["answer"].get("test_noise") if split == "test" else result.get("score_noise")
    doubt = f"; one standard error {digits(noise, unit)}{unit}" if noise else ""
    return f"{digits(result['answer'][key], unit)}{sign} on the {split} split ({', '.join(beside)}{doubt})"


def _ratios(own: Mapping[str, float], other: Mapping[str, float], name: str) -> str:
    parts = []
    for metric, (better, worse) in _WORDS.items():
        ours, theirs = own.get(metric), other.get(metric)
        if not ours or not theirs:
            continue
        ratio = theirs / ours
        if abs(ratio - 1.0) > _SAME:
            parts.append(f"{max(ratio, 1 / ratio):.3g}x {better if ratio > 1 else worse}")
    return f"{', '.join(parts)} than {name}" if parts else f"as small and as fast as {name}"
