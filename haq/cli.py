"""The `haq` command: reads arguments, shows progress, prints results. No logic of its own."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from haq import __version__
from haq.errors import InfeasibleError, InputError
from haq.files import to_json

if TYPE_CHECKING:
    from haq.experiment import Experiment

EXIT_OTHER, EXIT_INPUT, EXIT_INFEASIBLE, EXIT_INTERRUPTED = 1, 2, 3, 130
app = typer.Typer(
    help="Hardware-aware mixed-precision search.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)
hardware_app = typer.Typer(help="The devices that have a profile.", no_args_is_help=True)
app.add_typer(hardware_app, name="hardware")
_MOST_PRECISIONS = 9
_err = Console(stderr=True, highlight=False, soft_wrap=True)
_out = Console(highlight=False)

ExperimentFile = Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="Experiment file (TOML).")]
PolicyFile = Annotated[Path, typer.Option("--policy", help="Policy file (JSON).")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. seed=1.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


class _Bars:
    """Progress on standard error: a bar for each stage on a terminal, single lines elsewhere."""

    def __init__(self) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal)
        self._task = None if self._progress.disable else self._progress.add_task("starting", total=None)

    def __enter__(self) -> _Bars:
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.__exit__(*exception)

    def stage(self, name: str) -> None:
        if self._task is None:
            _err.print(name, markup=False)
        else:
            self._progress.reset(self._task, total=None, description=name)

    def step(self, done: int, total: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False)


def _experiment(path: Path, overrides: list[str] | None) -> Experiment:
    from haq.experiment import Experiment

    return Experiment.load(path, overrides=overrides or [])


def _print_json(document: Any) -> None:
    sys.stdout.write(to_json(document))


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


@app.command()
def search(
    experiment: ExperimentFile,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/<name of the experiment>.")] = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search the best policy of an experiment, measure it, and write the run folder."""
    from haq.run import run_experiment

    command = shlex.join(["haq", *sys.argv[1:]])
    with _Bars() as bars:
        folder, result = run_experiment(
            _experiment(experiment, overrides), out=out, resume=resume, command=command, reporter=bars
        )
    if as_json:
        _print_json({"folder": str(folder), **result})
        return
    _show_result(folder, result)


def _show_result(folder: Path, result: dict[str, Any]) -> None:
    from haq.types import Policy

    columns = {name: entry for name, entry in (*result["baselines"].items(), ("answer", result["answer"])) if entry}
    floating, unit = result["float"], result["score_unit"] and f" {result['score_unit']}"
    table = Table("", "budget", "float", *columns, title=result["device"]["title"])
    for key, label in (("test_score", f"test score{unit}"), ("score", f"search score{unit}")):
        ours = floating["search_score" if key == "score" else key]
        table.add_row(label, "", _number(ours), *(_number(entry[key]) for entry in columns.values()))
    for metric in result["answer"]["costs"]:
        bound = result["budgets"].get(metric)
        costs = (_number(entry["costs"][metric]) for entry in columns.values())
        table.add_row(metric, "" if bound is None else _number(bound), "", *costs)
    _out.print(table)
    policy = Policy.from_doc(result["answer"]["policy"])
    shown = [f"{escape(layer)} [bold]{precision}[/]" for layer, precision in policy.items()]
    _out.print(Columns(shown, padding=(0, 3)))
    _out.print(result["verdict"], markup=False)
    for warning in result["warnings"]:
        _out.print(f"warning: {warning}", markup=False)
    _out.print(f"report: {folder / 'report.html'}\npolicy: {folder / 'policy.json'}", markup=False, soft_wrap=True)


@app.command()
def solve(
    problem: Annotated[Path, typer.Argument(metavar="PROBLEM", help="Problem file (JSON); needs no model.")],
    top: Annotated[int, typer.Option(min=1, help="How many solutions, best first.")] = 1,
    gap: Annotated[float, typer.Option(min=0.0, help="Relative gap at which to stop; 0: the exact optimum.")] = 0.0,
    time_limit: Annotated[float | None, typer.Option(min=0.0, help="Seconds.")] = None,
    solver: Annotated[str, typer.Option(help="auto, highs or cbc.")] = "auto",
) -> None:
    """Solve a problem file to the optimum and print one JSON document."""
    from haq.problem import load_problem
    from haq.search.solve import solve_document

    solution = solve_document(load_problem(problem), top=top, gap=gap, time_limit=time_limit, solver=solver)
    _print_json(solution)
    if solution["status"] == "infeasible":
        raise typer.Exit(EXIT_INFEASIBLE)


@app.command()
def cost(experiment: ExperimentFile, policy: PolicyFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print what a policy costs: per layer, per switch, and in all."""
    from haq.costs import cost_report

    pieces = _experiment(experiment, overrides)
    report = cost_report(pieces.network, pieces.cost_model, pieces.load_policy(policy)).to_doc()
    if as_json:
        _print_json(report)
        return
    _show_cost(report, title=pieces.profile.title)


def _show_cost(report: dict[str, Any], *, title: str) -> None:
    metrics = [metric for metric in report["totals"] if metric != "peak_activation_bytes"]
    layers = Table("layer", "precision", *metrics, title=title)
    for row in report["layers"]:
        layers.add_row(row["name"], row["precision"], *(_number(row["costs"].get(metric)) for metric in metrics))
    _out.print(layers)
    switches = Table("switch", "written", "wanted", "read by", *metrics)
    for row in report["switches"]:
        costs = (_number(row["costs"].get(metric)) for metric in metrics)
        switches.add_row(row["tensor"], row["written"], row["wanted"], ", ".join(row["to"]), *costs)
    for row in report["joins"]:
        costs = (_number(row["costs"].get(metric)) for metric in metrics)
        switches.add_row(row["name"], row["wanted"], row["written"], f"with {row['other']}", *costs)
    if switches.row_count:
        _out.print(switches)
    else:
        _out.print("No switches: every layer reads the format that was written.")
    for metric, value in report["totals"].items():
        note = f"  (at {report['peak']['step']})" if metric == "peak_activation_bytes" and report["peak"] else ""
        _out.print(f"{metric:24s} {value:,.6g}{note}")


@app.command()
def evaluate(experiment: ExperimentFile, policy: PolicyFile, overrides: Overrides = None) -> None:
    """Measure a policy on the search split and print its score and costs as JSON."""
    from haq.costs import cost_report

    pieces = _experiment(experiment, overrides)
    chosen = pieces.load_policy(policy)
    pieces.space.check(chosen)
    evaluator = pieces.evaluator("search")
    measurement, floating = evaluator(chosen), evaluator.float_measurement()
    costs = cost_report(pieces.network, pieces.cost_model, chosen).totals
    document = {
        "schema_version": 1,
        "metric": pieces.config.evaluator.metric,
        "split": "search",
        "measurement": measurement.to_doc(),
        "float_score": floating.score,
        "costs": costs,
    }
    _print_json(document)
    if not measurement.ok:
        raise InputError(f"{policy}: the policy could not be measured: {measurement.error}")


@app.command()
def sensitivity(
    experiment: ExperimentFile,
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/<name>-sensitivity.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score how much each layer's formats hurt; write the table and its heat map."""
    from haq.run import write_sensitivity

    pieces = _experiment(experiment, overrides)
    folder = out or Path("runs") / f"{pieces.config.name}-sensitivity"
    with _Bars() as bars:
        bars.stage(f"sensitivity ({pieces.config.sensitivity.metric})")
        table = write_sensitivity(pieces, folder, progress=bars.step)
    if as_json:
        _print_json({"folder": str(folder), "metric": table.metric, "rows": table.rows()})
        return
    _show_sensitivity(table.rows(), title=f"predicted loss increase ({table.metric})")
    _out.print(f"Table: {folder / 'sensitivity.csv'}   Heat map: {folder / 'sensitivity.png'}", soft_wrap=True)


def _show_sensitivity(rows: list[dict[str, Any]], *, title: str) -> None:
    columns = list(dict.fromkeys((row["kind"], row["format"]) for row in rows))
    cells = {(row["layer"], row["kind"], row["format"]): row["sensitivity"] for row in rows}
    table = Table("layer", *(f"{kind} {name}" for kind, name in columns), title=title)
    for layer in dict.fromkeys(row["layer"] for row in rows):
        table.add_row(layer, *(_number(cells.get((layer, *column))) for column in columns))
    _out.print(table)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[Path, typer.Option(help="Folder for the table, the plots and the page.")],
    as_json: AsJson = False,
) -> None:
    """Overlay runs: scores, costs, fronts, bits per layer, convergence."""
    from haq.report import compare_runs

    rows = compare_runs(runs, out)
    if as_json:
        _print_json({"folder": str(out), "runs": rows})
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(
            *(_number(value) if isinstance(value, float | int) else str(value or "–") for value in row.values())
        )
    _out.print(table)
    _out.print(f"Page: {out / 'compare.html'}", markup=False, soft_wrap=True)


@hardware_app.command("list")
def hardware_list(as_json: AsJson = False) -> None:
    """List the devices that have a profile."""
    from haq.hardware import list_profiles

    profiles = list_profiles()
    if as_json:
        _print_json([profile.summary() for profile in profiles])
        return
    table = Table("name", "device", "cost model", "precisions", "metrics")
    for profile in profiles:
        row = profile.summary()
        shown, more = row["precisions"][:_MOST_PRECISIONS], row["precisions"][_MOST_PRECISIONS:]
        precisions = ", ".join(shown) + (f", ... ({len(more)} more)" if more else "")
        table.add_row(row["name"], row["title"], row["kind"], precisions, ", ".join(row["metrics"]))
    _out.print(table)


@hardware_app.command("show")
def hardware_show(name: Annotated[str, typer.Argument(help="Name of a profile, or the path of one.")]) -> None:
    """Print one device profile, with its provenance, as JSON."""
    from haq.hardware import load_profile

    _print_json(load_profile(name).to_doc())


def _version(show: bool) -> None:
    if show:
        _out.print(f"haq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _fail(message: str, code: int) -> int:
    _err.print(f"haq: {' '.join(message.split())}", markup=False)
    return code


def _other(error: Exception) -> int:
    usage = getattr(error, "format_message", None)  # typer's own errors, whichever click it brings
    if type(error).__name__ == "NoArgsIsHelpError":
        _err.print(str(error), markup=False)
        return EXIT_INPUT
    if usage is not None:
        context = getattr(error, "ctx", None)
        return _fail(usage() + (f"; see '{context.command_path} --help'" if context else ""), EXIT_INPUT)
    if os.environ.get("HAQ_DEBUG"):
        raise error
    return _fail(f"{type(error).__name__}: {error} (set HAQ_DEBUG=1 for the traceback)", EXIT_OTHER)


def main() -> None:
    """Run the command line; map errors to one line and an exit code."""
    sys.exit(_main())


def _main() -> int:
    try:
        outcome = app(standalone_mode=False)
    except InputError as error:
        return _fail(str(error), EXIT_INPUT)
    except InfeasibleError as error:
        return _fail(str(error), EXIT_INFEASIBLE)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; what was measured is kept: add --resume to go on", EXIT_INTERRUPTED)
    except Exception as error:
        return _other(error)
    return outcome if isinstance(outcome, int) else 0


if __name__ == "__main__":
    main()
