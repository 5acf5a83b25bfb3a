"""The numbers of accuracy against each metric: every measured policy, the Pareto front, where the answer lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from haq.report.units import in_order
from haq.results.read import Run
from haq.values.policy import Policy


@dataclass(frozen=True, slots=True)
class Measured:
    """A policy with a score; `kind` and `text` as in `Point`."""

    kind: str
    text: str
    costs: Mapping[str, float]
    score: float


@dataclass(frozen=True, slots=True)
class Point:
    """One measured policy.

    Attributes:
        kind: `trial`, `reference` (uniform, over the whole range), `uniform`, `greedy` (baselines) or `answer`.
        text: its precision where it is uniform, else its name.
        cost: in the panel's metric.
        score: larger is better.
    """

    kind: str
    text: str
    cost: float
    score: float


@dataclass(frozen=True, slots=True)
class Panel:
    """All measured policies against one metric.

    Attributes:
        metric: its name.
        points: in the order in which they are drawn, the answer last.
        front: the points that no other beats in both, by rising cost.
        budget: upper bound on the metric, if it has one.
    """

    metric: str
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    budget: float | None


@dataclass(frozen=True, slots=True)
class TradeoffData:
    """Accuracy against each metric.

    Attributes:
        axis: name of the score with its unit.
        unit: its unit.
        panels: one per metric, budgeted metrics first.
        float_score: of the unquantized model.
        noise: standard error of a score.
        least_score: the budget on the accuracy drop as a score, if there is one.
    """

    axis: str
    unit: str
    panels: tuple[Panel, ...]
    float_score: float | None
    noise: float | None
    least_score: float | None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, score) points that no other point matches at less cost or beats at no more, by rising cost.

    Of equal points the first one counts.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def measured(run: Run) -> list[Measured]:
    """Every policy with a score: trials that are nothing else, references, baselines, and the answer last."""
    result = run.result
    entries = [("reference", main_precision(entry.policy), entry) for entry in result.references]
    entries += [(kind, kind, entry) for kind, entry in result.baselines.items() if entry is not None]
    entries.append(("answer", "answer", result.answer))
    named = {entry.policy.key for _, _, entry in entries}
    trials = [trial for trial in run.trials if trial.measurement.ok and trial.policy.key not in named]
    found = [Measured("trial", "", trial.costs, trial.measurement.score) for trial in trials]
    return found + [Measured(kind, text, e.costs, e.score) for kind, text, e in entries if e.score is not None]


def main_precision(policy: Policy) -> str:
    """The precision of most layers: what a uniform policy is called, whose first and last layer may be pinned."""
    return Counter(map(str, policy.values())).most_common(1)[0][0] if policy else ""


def tradeoff_data(run: Run) -> TradeoffData:
    """What `plot_tradeoff` draws: one panel per metric that the answer's cost is known in."""
    return _data(run, in_order(set(run.result.answer.costs) - {"sensitivity"}, first=run.result.budgets))


def prediction_data(run: Run) -> TradeoffData:
    """What `plot_tradeoff` draws to check the prediction: the score against the predicted loss increase."""
    return _data(run, ["sensitivity"])


def ranked_right(points: Sequence[tuple[float, float]]) -> float | None:
    """Of all pairs of (prediction, score) that differ in both, the share whose lower prediction scored higher."""
    table = np.array(points, dtype=float).reshape(-1, 2)
    agree = total = 0
    for i in range(len(table)):
        products = np.prod(table[i] - table[i + 1 :], axis=1)
        agree, total = agree + int((products < 0).sum()), total + int((products != 0).sum())
    return agree / total if total else None


def _data(run: Run, metrics: Sequence[str]) -> TradeoffData:
    result, policies = run.result, measured(run)
    panels = []
    for metric in metrics:
        points = tuple(
            Point(one.kind, one.text, one.costs[metric], one.score)
            for one in policies
            if one.costs.get(metric) is not None
        )
        front = tuple(points[i] for i in pareto_front([(p.cost, p.score) for p in points]))
        panels.append(Panel(metric, points, front, result.budgets.get(metric)))
    reference, drop = result.unquantized.search_score, result.budgets.get("accuracy_drop")
    least = None if reference is None or drop is None else reference - drop
    return TradeoffData(result.score_axis, result.score_unit, tuple(panels), reference, result.score_noise, least)


def score_range(panels: Sequence[Panel], *, lines: Sequence[float] = (), noise: float = 0.0) -> tuple[float, float]:
    """The scores that a figure shows: all of them, or those near the answer where others lie far below.

    What matters is how the answer compares with the best scores; a 2-bit network at chance level would flatten that.
    """
    points = [point for panel in panels for point in panel.points]
    answers = [point.score for point in points if point.kind == "answer"]
    named = [point.score for point in points if point.kind in ("uniform", "greedy")]
    scores = [*(point.score for point in points), *lines, *(score + noise for score in answers)]
    if not scores:
        return 0.0, 1.0
    high, lowest = max(scores), min(scores)
    key = min([*answers, *named, *lines], default=lowest)
    reach = max(high - min(answers, default=lowest), 3 * noise)
    low = max(lowest, key - 0.6 * (high - key))
    if reach > 0:
        low = max(low, high - 4 * reach)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
