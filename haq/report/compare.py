"""`haq compare`: several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq.edges.cells import csv_text
from haq.edges.documents import write_bytes, write_text
from haq.report.explore import explore_data, script
from haq.report.facts import cost_columns, flatten
from haq.report.figures.comparison import plot_fronts, plot_progress, plot_strips
from haq.report.figures.style import png
from haq.report.figures.tradeoff import Panel, Point, measured, pareto_front
from haq.report.html import inline, render
from haq.report.units import in_order, is_tie, score
from haq.results.read import Run, load_run
from haq.values.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Comparison:
    """Runs whose scores can be compared.

    Attributes:
        names: one per run, distinct.
        runs: in the order given.
        metrics: those that every answer's cost is known in, budgeted ones first.
    """

    names: tuple[str, ...]
    runs: tuple[Run, ...]
    metrics: tuple[str, ...]


def compare_data(runs: Sequence[Run]) -> Comparison:
    """Line runs up.

    Raises:
        InputError: fewer than two runs, or scores that mean different things.
    """
    if len(runs) < 2:
        raise InputError("compare needs two or more run folders, for example: haq compare runs/a runs/b --out compared")
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = (f"{r.result.metric} {r.result.score_unit}".strip() for r in (first, run))
        if ours != theirs:
            raise InputError(
                f"{run.path}: its score is {theirs}, that of {first.path} is {ours}; compare runs of one score"
            )
    shared = set.intersection(*(set(run.result.answer.costs) for run in runs)) - {"sensitivity"}
    budgeted = {metric for run in runs for metric in run.result.budgets}
    return Comparison(_names(runs), tuple(runs), tuple(in_order(shared, first=budgeted)))


def _names(runs: Sequence[Run]) -> tuple[str, ...]:
    for candidates in ([run.name for run in runs], [run.path.resolve().name for run in runs]):
        if len(set(candidates)) == len(runs):
            return tuple(candidates)
    return tuple(f"{run.name} #{number}" for number, run in enumerate(runs, start=1))


def comparison_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per run: scores and costs of its answer, as numbers."""
    rows = []
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        result = run.result
        row: dict[str, Any] = {"run": name, "device": result.device.name, "strategy": run.strategy}
        row |= {"test_score": result.answer.test_score, "search_score": result.answer.score}
        row |= {"float_test_score": result.unquantized.test_score, "policies": result.trials or len(run.trials)}
        if result.breakdown.coverage is not None:
            row["quantized_bytes_percent"] = result.breakdown.coverage.bytes_percent
        rows.append(row | {metric: result.answer.costs[metric] for metric in comparison.metrics})
    return rows


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) of every key of the experiments that is not the same in all; names left out."""
    configs: list[Mapping[str, str]] = [dict(flatten(run.result.experiment)) for run in runs]
    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if key != "name"]
    values = {key: [config.get(key, "–") for config in configs] for key in keys}
    return [(key, row) for key, row in values.items() if len(set(row)) > 1]


def fronts_data(comparison: Comparison) -> list[list[Panel]]:
    """For each metric, one panel per run: its measured policies, answer last, and its own Pareto front."""
    found = []
    for metric in comparison.metrics:
        panels = []
        for run in comparison.runs:
            policies = [one for one in measured(run) if one.costs.get(metric) is not None]
            points = tuple(Point(one.kind, one.text, one.costs[metric], one.score) for one in policies)
            front = tuple(points[i] for i in pareto_front([(point.cost, point.score) for point in points]))
            panels.append(Panel(metric, points, front, run.result.budgets.get(metric)))
        found.append(panels)
    return found


def progress_data(run: Run) -> list[tuple[int, float]]:
    """(evaluation, best score so far) over the trials of the search itself, baselines left out."""
    own = [trial for trial in run.trials if trial.source == run.strategy] or list(run.trials)
    best: list[tuple[int, float]] = []
    for number, trial in enumerate(own, start=1):
        if trial.measurement.ok:
            best.append((number, max([trial.measurement.score, *(score for _, score in best[-1:])])))
        elif best:
            best.append((number, best[-1][1]))
    return best


def same_layers(runs: Sequence[Run]) -> bool:
    """Whether all answers name the same layers."""
    return len({frozenset(run.result.answer.policy) for run in runs}) == 1


def comparison_figures(comparison: Comparison) -> dict[str, Figure]:
    """`accuracy`, `progress` and, where the layers agree, `bits`."""
    axis = comparison.runs[0].result.score_axis
    found = (
        {"accuracy": plot_fronts(comparison.names, fronts_data(comparison), axis=axis)} if comparison.metrics else {}
    )
    progress = [progress_data(run) for run in comparison.runs]
    if any(progress):
        found["progress"] = plot_progress(comparison.names, progress, axis=axis)
    if same_layers(comparison.runs):
        found["bits"] = plot_strips(comparison.names, [run.result.answer.policy for run in comparison.runs])
    return found


def compare_runs(run_dirs: Sequence[str | Path], out: str | Path) -> list[dict[str, Any]]:
    """Overlay runs: write `compare.html`, `compare.csv` and `plots/*.png` into `out`.

    Returns:
        One row per run, as `comparison_rows`.

    Raises:
        InputError: a folder is no finished run, or the scores cannot be compared.
    """
    comparison = compare_data([load_run(folder) for folder in run_dirs])
    rows, figures, folder = comparison_rows(comparison), comparison_figures(comparison), Path(out)
    images = {name: png(figure) for name, figure in figures.items()}
    page = _page(comparison, rows, inline(figures))
    for name, image in images.items():
        write_bytes(folder / "plots" / f"{name}.png", image)
    write_text(folder / "compare.csv", csv_text(rows))
    write_text(folder / "compare.html", page)
    return rows


def _page(comparison: Comparison, rows: list[dict[str, Any]], plots: Mapping[str, Any]) -> str:
    from markupsafe import Markup

    unit = comparison.runs[0].result.score_unit
    table = [
        {
            **row,
            "test": score(row["test_score"], unit),
            "search": score(row["search_score"], unit),
            "float": score(row["float_test_score"], unit),
            "quantized": f"{row['quantized_bytes_percent']:.1f}" if "quantized_bytes_percent" in row else "–",
        }
        for row in rows
    ]
    text, script_hash = script()
    return render(
        "compare.html.j2",
        explore=explore_data(comparison.names, comparison.runs, comparison.metrics),
        script=Markup(text),
        script_hash=script_hash,
        title=f"{len(rows)} runs compared",
        verdict=comparison_verdict(comparison),
        rows=table,
        costs=cost_columns(rows, comparison.metrics),
        differences=differing_settings(comparison.runs),
        names=comparison.names,
        plots=plots,
        captions=_CAPTIONS,
        commands=[run.result.command for run in comparison.runs if run.result.command],
        same_layers=same_layers(comparison.runs),
    )


_CAPTIONS = {
    "accuracy": "Measured policies of each run on its search split, and its Pareto front. Stars are the answers, "
    "dashed lines the budgets.",
    "progress": "Best score so far on the search split, over the policies that the search itself proposed.",
    "bits": "Formats of each answer: weights in the upper strip, activations in the lower one.",
}


def comparison_verdict(comparison: Comparison) -> str:
    """Which run has the best answer by its test score, and which others it cannot be told apart from."""
    answers = {name: run.result.answer for name, run in zip(comparison.names, comparison.runs, strict=True)}
    tested = {name: entry for name, entry in answers.items() if entry.test_score is not None}
    if not tested:
        return "None of these runs has a test score."
    best = max(tested, key=lambda name: tested[name].test_score or 0.0)
    top = tested[best].test_score or 0.0
    ties = [
        name
        for name, entry in tested.items()
        if name != best and is_tie(top - (entry.test_score or 0.0), (entry.test_noise, tested[best].test_noise))
    ]
    text = f"{best} scores best on the test split: {score(top, comparison.runs[0].result.score_unit)}"
    return (
        f"{text}; {', '.join(ties)} cannot be told apart from it (within two standard errors)." if ties else text + "."
    )
