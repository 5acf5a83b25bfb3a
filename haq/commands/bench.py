"""`haq bench regret`: strategies on ground truths; the table, the plot and every curve."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from haq.bench.regret import Case, Contender, Curves, Score, cases, run
from haq.bench.summary import overall, summary
from haq.bench.truth import SPLITS, GroundTruth, load_ground_truth
from haq.edges.cells import csv_text
from haq.edges.documents import write_bytes, write_json, write_text
from haq.report.figures.regret import RegretPanel, plot_regret
from haq.report.figures.style import png
from haq.values.errors import InputError

FOLDER = Path("benchmarks") / "ground_truth"
CONTENDERS = ("ilp", "random", "evolutionary", "bayesian", "actor_critic", "adaptive_ilp")
SHARES = (0.02, 0.2, 0.7)
BUDGETED = ("bops", "size_bytes")


def shipped() -> list[Path]:
    """The ground truths in `./benchmarks/ground_truth`, else those of the repository or package that runs."""
    package = Path(__file__).resolve().parents[1]
    for folder in (FOLDER, package.parent / FOLDER, package / "_ground_truth"):
        if found := [path for path in sorted(folder.glob("*.json")) if path.with_suffix(".npz").exists()]:
            return found
    raise InputError(f"no ground truth in {FOLDER}; name one, or make it with scripts/make_ground_truth.py")


def contender(text: str) -> Contender:
    """Read `strategy`, or `strategy:option=value,option=value`; `sensitivity=fisher` chooses the sensitivities.

    Raises:
        InputError: an unknown strategy or option.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"--strategy {text}: {part!r} is no option; write {name}:option=value")
        options[key.strip()] = _value(value.strip())
    metric = options.pop("sensitivity", "")
    return Contender(text, name, options, str(metric))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def bench_regret(
    tables: Sequence[Path],
    strategies: Sequence[str],
    *,
    out: Path,
    seeds: int,
    evaluations: int,
    shares: Sequence[float],
    metrics: Sequence[str],
    score: str,
    answer: str = "measured",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Run strategies on ground truths and write `regret.json`, `regret.csv`, `curves.json` and a plot per table.

    Args:
        tables: JSON files of ground truths; none: those that are shipped.
        strategies: as `contender` reads them; none: one of each kind.
        out: folder to write.
        seeds: runs of every strategy that draws.
        evaluations: policies measured in each.
        shares: budgets, as parts of all policies that are within them; none: three from tight to loose.
        metrics: that are budgeted, one at a time; none: bit operations and size.
        score: what the search maximises: `metric` (the table's) or `loss` (least).
        answer: of what was measured, as `search.answer` says it: `measured` or `fitted`.
        progress: called with cases done and their total.

    Returns:
        The content of `regret.json`.

    Raises:
        InputError: a table, strategy, metric or share cannot be used.
    """
    if score not in ("metric", "loss"):
        raise InputError(f"--score {score}: unknown; known: metric, loss")
    if answer not in ("measured", "fitted"):
        raise InputError(f"--answer {answer}: unknown; known: measured, fitted")
    kind: Score = "loss" if score == "loss" else "metric"
    truths = [load_ground_truth(path) for path in tables or shipped()]
    chosen = [contender(text) for text in strategies or CONTENDERS]
    over = [
        case
        for truth in truths
        for metric in metrics or BUDGETED
        for case in cases(truth, shares or SHARES, metric=metric, score=kind)
    ]
    fitted = answer == "fitted"
    curves = run(chosen, over, seeds=seeds, evaluations=evaluations, fitted=fitted, progress=progress)
    units = {truth.name: _unit(truth, kind) for truth in truths}
    by_budget = summary(curves, evaluations=evaluations)
    document = {
        "schema_version": 1,
        "about": {table: _about(unit) for table, unit in units.items()},
        "score": score,
        "answer": answer,
        "seeds": seeds,
        "evaluations": evaluations,
        "cases": [_case(case) for case in over],
        "overall": overall(curves, evaluations=evaluations),
        "by_budget": by_budget,
    }
    write_json(out / "regret.json", document)
    write_text(out / "regret.csv", csv_text(by_budget))
    write_json(out / "curves.json", [_curves(curve) for curve in curves])
    for truth in truths:
        own = [curve for curve in curves if curve.case.truth is truth]
        figure = plot_regret(
            _panels(own),
            unit=units[truth.name],
            title=f"{truth.name}: {seeds} seeds; budgets that so many of the policies keep",
        )
        write_bytes(out / f"{truth.name}.png", png(figure))
    return document


def _unit(truth: GroundTruth, score: Score) -> str:
    if score == "loss":
        return "loss"
    return "points" if truth.about["metric"] == "accuracy" else str(truth.about["metric"])


def _about(unit: str) -> str:
    what = "minus the loss" if unit == "loss" else "the table's metric"
    return (
        f"Strategies maximise {what} on the search split. Regret ({unit}) on the search split: the best score within "
        "budget less the best found. On the test split: the best test score within budget less that of the policy "
        "which is best on the search split (with --answer fitted: by a fit to what was measured there)."
    )


def _case(case: Case) -> dict[str, Any]:
    document: dict[str, Any] = {
        "table": case.truth.name,
        "budgeted_metric": case.metric,
        "budget": case.bound,
        "share_within": case.share,
        "policies": int(case.within.sum()),
    }
    for split in SPLITS:
        scores = case.scores[split][case.within]
        document[split] = {"best": case.best(split), "worst": float(scores.min())}
        document[split]["optima"] = int((scores == case.best(split)).sum())
    return document


def _curves(curve: Curves) -> dict[str, Any]:
    regret = {split: curve.regret[split].round(5).tolist() for split in SPLITS}
    return {
        "table": curve.case.truth.name,
        "strategy": curve.contender.label,
        "budgeted_metric": curve.case.metric,
        "budget": curve.case.bound,
        "regret": regret,
    }


def _panels(curves: Sequence[Curves]) -> list[RegretPanel]:
    keys = list(dict.fromkeys((curve.case.metric, curve.case.share) for curve in curves))
    return [
        RegretPanel(
            f"{metric}: {100 * share:g} %",
            f"{split} split",
            {c.contender.label: c.regret[split] for c in curves if (c.case.metric, c.case.share) == (metric, share)},
        )
        for split in SPLITS
        for metric, share in keys
    ]
