"""What the `haq` command shows: progress on standard error, results as tables on standard output."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from haq.edges.documents import to_json
from haq.report.units import unit_of
from haq.values.errors import printable
from haq.values.policy import Policy
from haq.values.rung import Rung

_PIPE_WIDTH = 160


class _Safe(Console):
    """A console that shows control characters of names and messages escaped."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


stderr = _Safe(stderr=True, highlight=False, markup=False, soft_wrap=True)


class Bars:
    """Progress on standard error: a bar for each stage on a terminal, single lines elsewhere."""

    def __init__(self) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = None if self._progress.disable else self._progress.add_task("starting", total=None)

    def __enter__(self) -> Bars:
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.__exit__(*exception)

    def stage(self, name: str) -> None:
        if self._task is None:
            stderr.print(name)
        else:
            self._progress.reset(self._task, total=None, description=printable(name))

    def step(self, done: int, total: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        self._progress.console.print(text)


@contextmanager
def running() -> Iterator[Bars]:
    """Progress for the length of the block, and standard output kept for the result."""
    with redirect_stdout(sys.stderr), Bars() as bars:
        yield bars


def print_out(*results: Table | Columns | str) -> None:
    """Print results to standard output, as wide as the terminal, or wide enough for a file."""
    console = _Safe(highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    for result in results:
        console.print(result, soft_wrap=isinstance(result, str))


def print_json(document: Any) -> None:
    """Print one document, escaped where the stream is not Unicode."""
    sys.stdout.write(to_json(document, ascii_only="utf" not in (sys.stdout.encoding or "").lower()))


def new_table(*columns: str, title: str | None = None) -> Table:
    """A table whose cells fold."""
    return Table(*(Column(name, overflow="fold") for name in columns), title=title)


def compact_table(*columns: str, title: str | None = None) -> Table:
    """A table for 80 columns: the first column folds, numbers stand at the right and never break."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=number > 0, justify="right" if number else "left")
    return table


def unit_row(metric: str, values: Sequence[float | None]) -> tuple[str, list[str]]:
    """Label with a unit that fits the largest value, and each value in it, four significant digits."""
    unit = unit_of(metric, max((abs(value) for value in values if value is not None), default=0.0))
    return unit.axis, [number_text(None if value is None else value / unit.factor) for value in values]


def number_text(value: Any) -> str:
    """Four digits, whole above 10,000."""
    return "–" if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def show_result(folder: Path, result: dict[str, Any]) -> None:
    """How much better in one line; scores and costs beside float and 8 bit; bits per layer; what to do next."""
    from haq.hardware.float_work import coverage_lines  # with numpy: not at every start

    floating = {"test_score": result["float"]["test_score"], "score": result["float"]["search_score"]}
    columns: dict[str, dict[str, Any]] = {"float": {**floating, "costs": result["float"]["costs"]}}
    named = (("8 bit", result["eight_bit"]), *result["baselines"].items(), ("answer", result["answer"]))
    columns |= {name: entry for name, entry in named if entry}
    table = compact_table("", "budget", *columns, title=result["device"]["title"])
    unit = f" [{result['score_unit']}]" if result["score_unit"] else ""
    for key, label in (("test_score", "test score"), ("score", "search score")):
        table.add_row(f"{label}{unit}", "", *(number_text(entry[key]) for entry in columns.values()))
    for metric in result["answer"]["costs"]:
        values = [result["budgets"].get(metric), *(entry["costs"].get(metric) for entry in columns.values())]
        label, texts = unit_row(metric, values)
        label = f"{label} (lower bound)" if metric in result["lower_bounds"] else label
        table.add_row(label, "" if values[0] is None else texts[0], *texts[1:])
    policy = Policy.from_doc(result["answer"]["policy"])
    bits = Columns(
        [Text.assemble(printable(f"{layer} "), (str(p), "bold")) for layer, p in policy.items()], padding=(0, 3)
    )
    warnings = (f"warning: {warning}" for warning in result["warnings"])
    print_out(result["headline"], table, bits, *coverage_lines(result["breakdown"]), result["verdict"], *warnings)
    where = shlex.quote(printable(str(folder)))
    print_out(
        f"policy: {folder / 'policy.json'}",
        f"report: {folder / 'report.html'}",
        "next:",
        f"  haq export {where} --format onnx --out model.onnx --check",
        f"  haq compare {where} ANOTHER_RUN --out compared",
    )


def show_front(folder: Path, document: dict[str, Any]) -> None:
    """A row per point, and what policies cost on the other devices."""
    found = [entry for entry in document["points"] if entry["costs"]]
    metrics = list(dict.fromkeys(metric for entry in found for metric in entry["costs"]))
    table = new_table("", "test score", "search score", *metrics, title=document["name"])
    for entry in document["points"]:
        if not entry["costs"]:
            table.add_row(entry["point"], "infeasible")
            continue
        same = f" = {entry['same_policy_as']}" if entry["same_policy_as"] else ""
        costs = (number_text(entry["costs"].get(metric)) for metric in metrics)
        table.add_row(
            entry["point"] + same, number_text(entry["test_score"]), number_text(entry["search_score"]), *costs
        )
    metrics = [metric for metric in metrics if metric != "sensitivity"]
    transfer = new_table("policy of", "on", *metrics, title="what it costs on the other devices")
    for row in document["transfer"]:
        costs = (number_text((row["costs"] or {}).get(metric)) for metric in metrics)
        transfer.add_row(row["policy_of"], row["device"], *costs)
    table.columns[0].no_wrap = transfer.columns[0].no_wrap = True
    print_out(table, *([transfer] if document["transfer"] else []))
    lines = {entry["point"]: entry["coverage"]["line"] for entry in found}
    for line in dict.fromkeys(lines.values()):
        print_out(f"{', '.join(point for point, own in lines.items() if own == line)}: {line}")
    print_out(f"float test score {number_text(document['float_test_score'])}; policies: {folder / 'policies'}")


def show_cost(report: dict[str, Any], *, title: str) -> None:
    """Costs per layer and per switch."""
    from haq.hardware.float_work import coverage_lines

    metrics = [metric for metric in report["totals"] if metric != "peak_activation_bytes"]
    layers = new_table("layer", "precision", *metrics, title=title)
    for row in report["layers"]:
        layers.add_row(row["name"], row["precision"], *(number_text(row["costs"].get(metric)) for metric in metrics))
    switches = new_table("switch", "written", "wanted", "read by", *metrics)
    for row in report["switches"]:
        costs = (number_text(row["costs"].get(metric)) for metric in metrics)
        switches.add_row(row["tensor"], row["written"], row["wanted"], ", ".join(row["to"]), *costs)
    for row in report["joins"]:
        costs = (number_text(row["costs"].get(metric)) for metric in metrics)
        switches.add_row(row["name"], row["wanted"], row["written"], f"with {row['other'] or 'the input'}", *costs)
    none = "No switches: every layer reads the format that was written."
    print_out(layers, switches if switches.row_count else none)
    if report["float"]:
        floats = new_table("in float", "kind", *metrics, title="what stays in float, the same under every policy")
        for row in report["float"]:
            costs = ("unknown" if m in row["missing"] else number_text(row["costs"].get(m)) for m in metrics)
            floats.add_row(row["name"], row["kind"], *costs)
        print_out(floats)
    print_out(*coverage_lines(report))
    for metric, value in report["totals"].items():
        note = f"  (at {report['peak']['step']})" if metric == "peak_activation_bytes" and report["peak"] else ""
        print_out(f"{metric:24s} {value:,.6g}{note}")


def sensitivity_table(rows: list[dict[str, Any]], *, title: str) -> Table:
    """Layers by formats."""
    columns = list(dict.fromkeys((row["kind"], row["format"]) for row in rows))
    cells = {(row["layer"], row["kind"], row["format"]): row["sensitivity"] for row in rows}
    table = new_table("layer", *(f"{kind} {name}" for kind, name in columns), title=title)
    for layer in dict.fromkeys(row["layer"] for row in rows):
        table.add_row(layer, *(number_text(cells.get((layer, *column))) for column in columns))
    return table


def show_export(document: dict[str, Any]) -> None:
    """What each layer runs as, and what the check found."""
    if "kernels" in document:
        table = new_table("layer", "precision", "runs as", "operator", title="what ONNX Runtime executes")
        for layer, row in document["kernels"].items():
            table.add_row(layer, row["precision"], row["runs_as"], row["operator"])
        print_out(table)
    measured = document["measurement"]
    if Rung(measured["fidelity"]).trains:
        found = document["search_score"]
        beside = "" if found is None else f", {found:.4g} when it was searched"
        print_out(
            f"fine-tuned ({measured['fidelity']}) in {number_text(measured['seconds'])} s: score "
            f"{measured['score']:.4g} on the search split{beside}"
        )
    if "check" in document:
        found = document["check"]
        alike = (
            f"cosine {found['cosine']:.6g}" if found["agreement"] is None else f"same class {found['agreement']:.2f} %"
        )
        print_out(
            f"check over {found['samples']} samples: {alike}, outputs differ by {100 * found['relative_error']:.2g} % "
            f"of their norm (at most {found['largest_difference']:.2g} of {found['largest_output']:.3g}), score "
            f"{found['exported_score']:.4g} against {found['score']:.4g} in torch"
        )
        if not found["passed"]:
            print_out(f"check FAILED, tolerance {100 * found['tolerance']:g} %: {'; '.join(found['failures'])}")
            if "cause" in found:
                print_out(f"cause: {found['cause']}")
    predicted = document["predicted_bytes"]
    beside = "" if predicted is None else f"; size_bytes, weights alone: {predicted:,.0f}"
    print_out(f"{document['format']} file: {document['file']} ({document['bytes']:,} bytes{beside})")


def show_profile(document: dict[str, Any]) -> None:
    """Times per layer of the two anchor policies, and what the fit came to."""
    low = document["low"]
    table = new_table("layer", "float us", f"{low} us", "faster", title=document["accelerator"] or document["cpu"])
    for layer, row in document["layers"].items():
        speed_up = f"{row['float_ms'] / row['low_ms']:.2f}x" if row["low_ms"] else "–"
        table.add_row(layer, number_text(1e3 * row["float_ms"]), number_text(1e3 * row["low_ms"]), speed_up)
    switches = (
        f"{kind.replace('_', ' ')} {document['fixed_us'][kind]:.3g} us + {value:.3g} ns per element"
        for kind, value in document["per_element_ns"].items()
        if value or document["fixed_us"][kind]
    )
    otherwise = {name for names in document["executed_otherwise"].values() for name in names}
    print_out(
        table,
        f"end to end: float {document['float_ms']:.4g} ms, {low} {document['low_ms']:.4g} ms "
        f"({document['float_ms'] / document['low_ms']:.2f}x)",
        f"conversions (down: to {low}): {', '.join(switches) or 'none'}",
        f"fit over {document['policies']} mixed policies, each left out in turn: mean error "
        f"{document['error_percent']:.2f} %, ninetieth percentile {document['guard_percent']:.2f} %; noise floor "
        f"{document['noise_floor_percent']:.2f} % over {document['rounds']} rounds",
        *([f"executed otherwise than asked: {', '.join(sorted(otherwise))}"] if otherwise else []),
        f"profile: {document['profile']}",
    )


def regret_table(rows: list[dict[str, Any]], *, title: str) -> Table:
    """Regret of each strategy after some evaluations: median and quartiles."""
    keys = list(dict.fromkeys((row["split"], row["evaluations"]) for row in rows))
    table = new_table("regret at", *(f"{split} {count}" for split, count in keys), "p", title=title)
    for name in dict.fromkeys(row["strategy"] for row in rows):
        own = {(row["split"], row["evaluations"]): row for row in rows if row["strategy"] == name}
        cells = ["{median:.2g} [{quartile_1:.2g}, {quartile_3:.2g}]".format(**own[k]) for k in keys]
        p = own[("search", keys[-1][1])].get("p_against_random")
        table.add_row(name, *cells, "" if p is None else f"{p:.1g}")
    return table
