"""Regret curves as numbers: medians and quartiles over seeds, and comparisons with a yardstick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from haq.bench.regret import Curves
from haq.bench.statistics import smaller
from haq.bench.truth import SPLITS

YARDSTICK = "random"


def marks(evaluations: int) -> list[int]:
    """Numbers of evaluations that are reported."""
    return sorted({mark for mark in (1, 5, 15, 50, 100, 200) if mark < evaluations} | {evaluations})


def summary(curves: Sequence[Curves], *, evaluations: int) -> list[dict[str, Any]]:
    """One row per table, strategy, budget, split and number of evaluations: the regret over seeds."""
    return [
        {
            "table": curve.case.truth.name,
            "strategy": curve.contender.label,
            "share_within": curve.case.share,
            "budgeted_metric": curve.case.metric,
            "budget": curve.case.bound,
            "split": split,
            "evaluations": mark,
            **_quartiles(curve.regret[split][:, mark - 1]),
            "spread": curve.case.spread(split),
        }
        for curve in curves
        for split in SPLITS
        for mark in marks(evaluations)
    ]


def overall(curves: Sequence[Curves], *, evaluations: int) -> list[dict[str, Any]]:
    """One row per table, strategy, split and number of evaluations: the regret over seeds and budgets.

    The p-value against random search compares each seed's mean regret over budgets at the last number of evaluations,
    by a one-sided Mann-Whitney test; none where random search does not take part.
    """
    result = []
    for table in dict.fromkeys(curve.case.truth.name for curve in curves):
        part = [curve for curve in curves if curve.case.truth.name == table]
        for name in dict.fromkeys(curve.contender.label for curve in part):
            for split in SPLITS:
                own, other = _stacked(part, name, split), _stacked(part, YARDSTICK, split)
                for mark in marks(evaluations):
                    row = {"table": table, "strategy": name, "split": split, "evaluations": mark}
                    row |= _quartiles(own[:, :, mark - 1])
                    if mark == evaluations and len(other) and name != YARDSTICK:
                        row["p_against_random"] = smaller(own[:, :, -1].mean(axis=0), other[:, :, -1].mean(axis=0))
                    result.append(row)
    return result


def _stacked(curves: Sequence[Curves], name: str, split: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`[budgets, seeds, evaluations]` of one strategy."""
    return np.array([curve.regret[split] for curve in curves if curve.contender.label == name])


def _quartiles(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    low, median, high = np.percentile(values, (25, 50, 75))
    return {"median": float(median), "quartile_1": float(low), "quartile_3": float(high), "worst": float(values.max())}
