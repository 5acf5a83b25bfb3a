"""`report.html`: one page that needs no other file and makes no request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haq.edges.documents import write_text
from haq.hardware.float_work import coverage_lines
from haq.report.captions import captions
from haq.report.facts import (
    budget_rows,
    conversion_rows,
    cost_columns,
    layer_rows,
    method,
    policy_rows,
    proof,
    score_note,
    tiles,
)
from haq.report.figures.all import figures
from haq.report.figures.costs import metrics_shown
from haq.report.figures.style import format_color, svg, text_on
from haq.report.units import amount, in_order
from haq.results.read import Run, load_run
from haq.results.schema import Result
from haq.values.errors import printable


def write_report(run_dir: str | Path) -> Path:
    """Write `run_dir/report.html` and return its path.

    Raises:
        InputError: the folder is not a finished run.
    """
    path = Path(run_dir) / "report.html"
    write_text(path, report_html(load_run(run_dir)))
    return path


def report_html(run: Run) -> str:
    """The page of a run as text."""
    result = run.result
    metrics = in_order(set(result.answer.costs) - {"sensitivity"}, first=result.budgets)
    shown = metrics_shown(result)
    policies, conversions = policy_rows(result), conversion_rows(result.breakdown)
    peak = result.breakdown.peak
    return render(
        "report.html.j2",
        title=run.name,
        subtitle=_subtitle(run),
        headline=result.headline,
        verdict=result.verdict,
        warnings=result.warnings,
        tiles=tiles(run),
        policies=policies,
        policy_costs=cost_columns([row["entry"] and row["entry"].costs for row in policies], metrics),
        score_note=score_note(result),
        budgets=budget_rows(result),
        proof=proof(result),
        plots=inline(figures(run)),
        captions=captions(run),
        layers=layer_rows(run, shown),
        layer_costs=cost_columns([layer.costs for layer in result.breakdown.layers], shown),
        has_macs=any(layer.macs is not None for layer in result.breakdown.layers),
        has_params=any(layer.params is not None for layer in result.breakdown.layers),
        has_sensitivity=bool(run.sensitivities),
        conversions=conversions,
        conversion_costs=cost_columns([row["costs"] for row in conversions], shown),
        coverage=_coverage(result),
        floats=result.breakdown.floats,
        float_costs=cost_columns([row.costs for row in result.breakdown.floats], shown),
        peak=f"Activation memory peaks at {peak.step}: {amount('peak_activation_bytes', peak.bytes)}." if peak else "",
        method=method(run),
        command=result.command or run.provenance.get("command", ""),
        config=json.dumps(result.experiment, indent=2, ensure_ascii=False),
    )


def _coverage(result: Result) -> list[str]:
    """What is quantized, what is left, what totals lack; nothing for a run of an earlier release, which did not say."""
    breakdown = result.breakdown
    return coverage_lines(breakdown.model_dump(by_alias=True)) if breakdown.coverage is not None else []


def _subtitle(run: Run) -> str:
    device = run.result.device
    batch = run.result.breakdown.batch
    name = f"{device.title} ({device.name})" if device.title and device.title != device.name else device.name
    return f"{name} · batch {batch} · strategy {run.strategy}" if run.strategy else name


def inline(plots: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as `<svg>` elements that a template may put in as they are."""
    from markupsafe import Markup

    return {name: Markup(svg(figure, prefix=name)) for name, figure in plots.items()}


def render(template: str, **values: Any) -> str:
    """A page from `templates/`; every value is escaped but what `inline` made, control characters, too."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"color": format_color, "text_on": text_on}
    return environment.get_template(template).render(**values)
