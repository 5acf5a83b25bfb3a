"""Data of the interactive part of a comparison: every measured policy as a point that a reader may hover and pick."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from haq.report.figures.style import RUN_COLORS
from haq.report.units import unit_of
from haq.results.read import Run

SCRIPT = Path(__file__).parent / "templates" / "explore.js"


def explore_data(names: Sequence[str], runs: Sequence[Run], metrics: Sequence[str]) -> dict[str, Any]:
    """What `explore.js` reads.

    Args:
        names: one per run.
        runs: in the same order.
        metrics: costs that may be the horizontal axis, the first is shown first.

    Returns:
        `axis` (of scores), `low` (least score shown; what lies below is drawn on the edge), `metrics` (key, label,
        factor from the unit stored to the one shown), `runs` (name, color) and `points`: run (index), source, number,
        score, costs, answer (whether it is the run's) and policy as `[layer, weight format, activation format]`.
    """
    points = [_point(index, run, number) for index, run in enumerate(runs) for number in range(len(run.trials))]
    found = [point for point in points if point is not None]
    largest = {metric: max((p["costs"].get(metric, 0.0) for p in found), default=0.0) for metric in metrics}
    units = {metric: unit_of(metric, largest[metric]) for metric in metrics}
    answers = [point["score"] for point in found if point["answer"]]
    high, low = (max((p["score"] for p in found), default=1.0), min(answers, default=0.0))
    return {
        "axis": runs[0].result.score_axis,
        "low": low - max(2.0 * (high - low), 0.02 * abs(high)),
        "metrics": [{"key": key, "label": unit.axis, "factor": unit.factor} for key, unit in units.items()],
        "runs": [
            {"name": name, "color": RUN_COLORS[index % len(RUN_COLORS)]}
            for index, name in zip(range(len(runs)), names, strict=True)
        ],
        "points": found,
    }


def _point(index: int, run: Run, number: int) -> dict[str, Any] | None:
    trial = run.trials[number]
    if not trial.measurement.ok:
        return None
    return {
        "run": index,
        "source": trial.source,
        "number": trial.number,
        "score": trial.measurement.score,
        "costs": dict(trial.costs),
        "answer": trial.policy == run.result.answer.policy,
        "policy": [[layer, p.weight.name, p.activation.name] for layer, p in trial.policy.items()],
    }


def script() -> tuple[str, str]:
    """The script of the page, and its hash for the page's content security policy: nothing else may run."""
    text = SCRIPT.read_text(encoding="utf-8")
    return text, f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
