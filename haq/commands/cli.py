"""The `haq` command: reads arguments, maps errors to exit codes. No logic of its own.

Results go to standard output, everything else to standard error; whatever the user's own code prints, too.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from haq import __version__
from haq.commands import devices, init, inspect, lint, plan_training
from haq.commands.options import (
    AsJson,
    ExperimentFile,
    NoCache,
    Overrides,
    PolicyFile,
    RayAddress,
    Workers,
    evaluating,
    experiment_of,
)
from haq.commands.terminal import (
    new_table,
    number_text,
    print_json,
    print_out,
    regret_table,
    running,
    sensitivity_table,
    show_cost,
    show_export,
    show_front,
    show_profile,
    show_result,
    stderr,
)
from haq.values.errors import InfeasibleError, InputError, shortened

if TYPE_CHECKING:
    from haq.experiment.experiment import Experiment

EXIT_OTHER, EXIT_INPUT, EXIT_INFEASIBLE, EXIT_CHECK, EXIT_INTERRUPTED = 1, 2, 3, 4, 130
app = typer.Typer(
    help="Hardware-aware mixed-precision search: the best bit-width per layer for a model, a device and a budget.",
    epilog="Exit codes: 0 done, 2 bad input, 3 no policy meets the budgets, 4 an export failed its check, "
    "130 interrupted, 1 anything else.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
)
hardware_app = typer.Typer(help="The devices that have a profile.", no_args_is_help=True)
app.add_typer(hardware_app, name="hardware")
cache_app = typer.Typer(help="The measurements kept between runs.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
bench_app = typer.Typer(help="Benchmarks whose answer is known.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
_MOST_PRECISIONS = 9
app.command("lint")(lint.lint)
app.command("plan-training")(plan_training.plan_training)
app.command("inspect")(inspect.inspect)
app.command("init")(init.init)
hardware_app.command("template")(devices.template)
hardware_app.command("check")(devices.check)


@app.command()
def search(
    experiment: ExperimentFile,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/<name of the experiment>.")] = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    no_cache: NoCache = False,
    workers: Workers = None,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Search the best policy of an experiment, measure it, and write the run folder: policy, report, plots, trials."""
    command = shlex.join(["haq", *sys.argv[1:]])
    options = evaluating(no_cache, workers, ray_address)
    with running() as bars:
        from haq.runs.front import points, run_front
        from haq.runs.search import run_experiment

        pieces = experiment_of(experiment, [*(overrides or []), *options])
        several = len(points(pieces.config)) > 1
        run = run_front if several else run_experiment
        folder, result = run(pieces, out=out, resume=resume, command=command, reporter=bars)
    if as_json:
        print_json({"folder": str(folder), **result})
        return
    (show_front if several else show_result)(folder, result)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", help="Sweep file (TOML).")],
    out: Annotated[Path, typer.Option(help="Folder: one run folder for each point of the grid, and compare/.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep that was stopped.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="How many runs at a time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Run a grid of searches (strategies, devices, budgets, seeds) through Ray Tune and compare them."""
    with running() as bars:
        from haq.runs.sweep import run_sweep

        bars.stage("sweeping")
        rows = run_sweep(file, out=out, resume=resume, workers=workers, note=bars.note)
    if as_json:
        print_json({"folder": str(out), "runs": rows})
        return
    failed, stopped = sum(bool(row["error"]) for row in rows), sum("stopped_after" in row for row in rows)
    early = f", {stopped} stopped early" if stopped else ""
    print_out(f"{len(rows) - failed - stopped} runs done{early}, {failed} failed")
    if (page := out / "compare" / "compare.html").exists():
        print_out(f"comparison: {page}")


@app.command()
def solve(
    problem: Annotated[Path, typer.Argument(metavar="PROBLEM", help="Problem file (JSON); needs no model.")],
    top: Annotated[int, typer.Option(min=1, help="How many solutions, best first.")] = 1,
    gap: Annotated[float, typer.Option(min=0.0, help="Relative gap at which to stop; 0: the exact optimum.")] = 0.0,
    time_limit: Annotated[float | None, typer.Option(min=0.0, help="Seconds.")] = None,
    solver: Annotated[str, typer.Option(help="auto, highs or cbc.")] = "auto",
) -> None:
    """Solve a problem file to the optimum and print one JSON document."""
    from haq.problem.problem import load_problem
    from haq.solve.solve import solve_document

    solution = solve_document(load_problem(problem), top=top, gap=gap, time_limit=time_limit, solver=solver)
    print_json(solution)
    if solution["status"] == "infeasible":
        raise typer.Exit(EXIT_INFEASIBLE)


@app.command()
def cost(experiment: ExperimentFile, policy: PolicyFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print what a policy costs: per layer, per switch, and in all."""
    from haq.hardware.costs import cost_report

    with running():
        pieces = experiment_of(experiment, overrides)
        report = cost_report(pieces.network, pieces.cost_model, pieces.load_policy(policy)).to_doc()
    if as_json:
        print_json(report)
        return
    show_cost(report, title=pieces.profile.title)


@app.command()
def evaluate(
    experiment: ExperimentFile,
    policy: PolicyFile,
    overrides: Overrides = None,
    no_cache: NoCache = False,
    engine: Annotated[
        str, typer.Option(help="float: as the search scores it; integer: in integers only, compared with that.")
    ] = "float",
    samples: Annotated[int | None, typer.Option(min=1, help="integer: how many samples, from the start.")] = None,
) -> None:
    """Measure a policy on the search split and print its score and costs as JSON."""
    if engine not in ("float", "integer"):
        raise InputError(f"--engine {engine!r}: unknown; known: float, integer")
    if samples is not None and engine != "integer":
        raise InputError("--samples: is for --engine integer; leave it out, or set evaluator.samples")
    if engine == "integer":
        with running() as bars:
            from haq.commands.export import evaluate_integer

            pieces = experiment_of(experiment, overrides)
            bars.stage("measuring the policy in integers")
            found = evaluate_integer(pieces, policy, samples=samples)
        print_json(found)
        return
    with running() as bars:
        from haq.experiment.workers import open_executor
        from haq.hardware.costs import cost_report

        pieces = experiment_of(experiment, [*(overrides or []), *evaluating(no_cache, None, None)])
        bars.stage("measuring the policy")
        chosen = pieces.load_policy(policy)
        pieces.space.check(chosen)
        costs = cost_report(pieces.network, pieces.cost_model, chosen).to_doc()
        with open_executor(pieces, note=bars.note) as executor:
            executor.submit(chosen)
            _, measurement = executor.next_completed()
        floating = pieces.evaluator("search").float_measurement()
    document = {
        "schema_version": 1,
        "metric": pieces.config.evaluator.metric,
        "split": "search",
        "measurement": measurement.to_doc(),
        "float_score": floating.score,
        "costs": costs["totals"],
        "coverage": costs["coverage"],
        "lower_bounds": costs["lower_bounds"],
    }
    print_json(document)
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
    with running() as bars:
        from haq.runs.search import write_sensitivity

        pieces = experiment_of(experiment, overrides)
        folder = out or Path("runs") / f"{pieces.config.name}-sensitivity"
        bars.stage(f"sensitivity ({pieces.config.sensitivity.metric})")
        table = write_sensitivity(pieces, folder, progress=bars.step)
    if as_json:
        print_json({"folder": str(folder), "metric": table.metric, "rows": table.rows()})
        return
    shown = sensitivity_table(table.rows(), title=f"predicted loss increase ({table.metric})")
    print_out(shown, f"table: {folder / 'sensitivity.csv'}\nheat map: {folder / 'sensitivity.png'}")


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_POLICY", help="Run folder, or policy file (JSON).")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    format: Annotated[
        str,
        typer.Option(
            help="onnx, torch, integer or c (a folder); others: ort-overrides, torchao, modelopt, aimet, qonnx."
        ),
    ],
    experiment: Annotated[
        Path | None, typer.Option(help="Experiment file; default: the one that the run folder holds.")
    ] = None,
    overrides: Overrides = None,
    pack: Annotated[bool, typer.Option("--pack", help="onnx: 4-bit tensors for weights of 4 bits and fewer.")] = False,
    integer_outputs: Annotated[
        bool, typer.Option("--integer-outputs", help="onnx: 8-bit layers write 8 bits, for integer kernels throughout.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare the file's outputs with the torch model's.")] = False,
    samples: Annotated[int | None, typer.Option(min=1, help="How many samples --check compares.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0.0, help="Share that --check lets outputs differ by: 0.02, with --integer-outputs 0.1."),
    ] = None,
    target_cpu: Annotated[
        str, typer.Option(help="onnx: any, or vnni: faster there, and wrong on x86 processors without VNNI.")
    ] = "any",
    rounding: Annotated[
        str, typer.Option(help="integer: how rescaling rounds: half_away, half_even, half_up or gemmlowp.")
    ] = "half_away",
    nonlinear: Annotated[
        str, typer.Option(help="integer: GELU and softmax by a table or a polynomial (I-BERT's).")
    ] = "table",
    as_json: AsJson = False,
) -> None:
    """Write a policy's quantized model as a file that runs without haq. A failed --check exits with 4."""
    with running() as bars:
        from haq.commands.export import export_policy, policy_file
        from haq.export import ExportOptions

        if experiment is None and overrides:
            raise InputError("--set: overrides keys of an experiment file; add --experiment")
        pieces = experiment_of(experiment, overrides) if experiment else _stored(policy_file(source))
        trains = pieces.config.evaluator.rungs[-1] not in ("ptq", "bn")
        bars.stage(f"{'fine-tuning and ' if trains else ''}exporting to {format}")
        document = export_policy(
            pieces,
            source,
            out,
            format=format,
            options=ExportOptions(pack, integer_outputs, target_cpu, rounding, nonlinear),
            check=check,
            samples=samples,
            tolerance=tolerance,
        )
    if as_json:
        print_json(document)
    else:
        show_export(document)
    if check and not document["check"]["passed"]:
        raise typer.Exit(EXIT_CHECK)


def _stored(path: Path) -> Experiment:
    from haq.experiment.experiment import Experiment

    return Experiment.stored(path)


@app.command()
def ladder(
    experiment: ExperimentFile,
    policies: Annotated[int, typer.Option(min=1, help="How many random policies within budget to measure.")] = 20,
    overrides: Overrides = None,
    no_cache: NoCache = False,
    workers: Workers = None,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Measure random policies on each rung of the evaluator's ladder: do the cheap ones rank as the dear ones do?"""
    with running() as bars:
        from haq.runs.ladder import compare_rungs

        pieces = experiment_of(experiment, [*(overrides or []), *evaluating(no_cache, workers, ray_address)])
        pieces.check()
        bars.stage("measuring policies on each rung")
        document = compare_rungs(pieces, policies=policies, progress=bars.step, note=bars.note)
    if as_json:
        print_json(document)
        return
    rungs = new_table("rung", "seconds a policy", "seconds once", "mean score", "failed")
    for rung in document["rungs"]:
        scores = [score for score in rung["scores"] if score is not None]
        mean = sum(scores) / len(scores) if scores else None
        rungs.add_row(rung["name"], *map(number_text, (rung["seconds"], rung["once"], mean, rung["failed"])))
    pairs = new_table("rungs", "policies", "Spearman", "95 %", "Kendall", "95 %")
    for pair in document["pairs"]:
        columns = []
        for found in (pair["spearman"], pair["kendall"]):
            columns += [number_text(found["value"]), f"{number_text(found['low'])} to {number_text(found['high'])}"]
        pairs.add_row(" / ".join(pair["rungs"]), str(pair["policies"]), *columns)
    print_out(rungs, pairs)


@app.command()
def profile(
    experiment: Annotated[Path, typer.Option(help="Experiment file: model, data and quantization are read.")],
    out: Annotated[Path, typer.Option(help="The profile to write (.toml).")] = Path("hardware_profiles/mine.toml"),
    runtime: Annotated[str, typer.Option(help="onnxruntime, torch, qemu, or command: your own.")] = "onnxruntime",
    device: Annotated[str, typer.Option(help="torch: cpu or cuda.")] = "cpu",
    script: Annotated[
        str, typer.Option("--command", help="command: reads a policy (JSON), writes milliseconds as its last line.")
    ] = "",
    low: Annotated[str, typer.Option(help="command: the precision beside float.")] = "w8a8",
    timeout: Annotated[float, typer.Option(min=0.1, help="command: seconds for one call.")] = 60.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one operator.")] = 1,
    policies: Annotated[int, typer.Option(min=4, help="Mixed policies to fit the cost of switches on.")] = 12,
    rounds: Annotated[int, typer.Option(min=2, help="Interleaved repeats; the median of their minima counts.")] = 30,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with measurements that were stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a machine for a model: layers in two precisions, switches between them, as a hardware profile."""
    command = shlex.join(["haq", *sys.argv[1:]])
    with running() as bars:
        from haq.profiling.machine import Settings, profile_machine
        from haq.profiling.runtimes.choice import RuntimeChoice

        pieces = experiment_of(experiment, overrides)
        if runtime == "qemu":
            from haq.profiling.microcontroller import check_options, profile_microcontroller

            check_options(device=device, command=script, low=low, timeout=timeout, threads=threads)
            check_options(policies=policies, rounds=rounds)
            print_json(profile_microcontroller(pieces, out, resume=resume, command=command, show=bars))
            return
        choice = RuntimeChoice(runtime, threads, device, script, low, timeout)
        settings = Settings(choice, policies, rounds)
        document = profile_machine(pieces, out, settings=settings, resume=resume, command=command, show=bars)
    if as_json:
        print_json(document)
        return
    show_profile(document)


@app.command()
def validate(
    profile: Annotated[str, typer.Argument(metavar="PROFILE", help="A profile that haq profile made.")],
    experiment: Annotated[Path, typer.Option(help="Experiment file: model, data and quantization are read.")],
    policies: Annotated[int, typer.Option(min=2, help="How many held-out policies.")] = 40,
    rounds: Annotated[int, typer.Option(min=2, help="Interleaved repeats; the median of their minima counts.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Of the policies.")] = 1,
    baselines: Annotated[
        bool, typer.Option(help="Also predict with summed stand-alone times and with bit operations.")
    ] = True,
    script: Annotated[
        str, typer.Option("--command", help="Of a profile that was measured with a command: run this one.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/<name>-validation.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure random mixed policies end to end and compare with what a measured profile predicts."""
    with running() as bars:
        from haq.profiling.microcontroller import check_options, is_emulated, validate_microcontroller
        from haq.profiling.validate import validate_profile

        pieces = experiment_of(experiment, overrides)
        folder = out or Path("runs") / f"{pieces.config.name}-validation"
        if is_emulated(profile):
            check_options(rounds=rounds, command=script)
            print_json(validate_microcontroller(pieces, profile, policies=policies, seed=seed, out=folder, show=bars))
            return
        document = validate_profile(
            pieces,
            profile,
            policies=policies,
            rounds=rounds,
            seed=seed,
            out=folder,
            show=bars,
            baselines=baselines,
            command=script,
        )
    if as_json:
        print_json({"folder": str(folder), **document})
        return
    table = new_table(
        "model", "mean error %", "90th percentile %", "worst %", "bias %", "Spearman", title=document["device"]
    )
    for name, row in document["models"].items():
        table.add_row(name, *(f"{row[key]:.2f}" for key in ("mean", "p90", "worst", "bias")), f"{row['spearman']:.3f}")
    print_out(
        table,
        f"{document['policies']} held-out policies, half of them in runs of layers; noise floor "
        f"{document['noise_floor_percent']:.2f} %",
        f"at the pace of the profile; now this machine takes {100 * (document['pace'] - 1):+.1f} %, with which the "
        f"profile's mean error is {document['as_timed']['mean']:.2f} %",
        f"figures: {folder / 'validation.json'}\nscatter plot: {folder / 'validation.png'}",
    )


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders of haq search.")],
    out: Annotated[Path, typer.Option(help="Folder for the table, the plots and the page.")],
    as_json: AsJson = False,
) -> None:
    """Overlay runs: scores, costs, fronts, bits per layer, convergence."""
    from haq.report import compare_runs

    rows = compare_runs(runs, out)
    if as_json:
        print_json({"folder": str(out), "runs": rows})
        return
    table = new_table("", *(str(row["run"]) for row in rows))
    for key in list(rows[0])[1:]:
        values = (row[key] for row in rows)
        table.add_row(key, *(number_text(v) if isinstance(v, float | int) else str(v or "–") for v in values))
    print_out(table, f"page: {out / 'compare.html'}")


@hardware_app.command("list")
def hardware_list(as_json: AsJson = False) -> None:
    """List the devices that have a profile."""
    from haq.hardware import list_profiles

    profiles = list_profiles()
    if as_json:
        print_json([profile.summary() for profile in profiles])
        return
    table = new_table("name", "device", "cost model", "precisions", "metrics")
    for profile in profiles:
        row = profile.summary()
        shown, more = row["precisions"][:_MOST_PRECISIONS], row["precisions"][_MOST_PRECISIONS:]
        precisions = ", ".join(shown) + (f", ... ({len(more)} more)" if more else "")
        table.add_row(row["name"], row["title"], row["kind"], precisions, ", ".join(row["metrics"]))
    print_out(table)


@hardware_app.command("show")
def hardware_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a profile, or the path of one (.toml).")],
) -> None:
    """Print one device profile, with its provenance, as JSON."""
    from haq.hardware import load_profile

    print_json(load_profile(name).to_doc())


CacheFolder = Annotated[Path | None, typer.Option(help="Cache folder; default: $HAQ_CACHE_DIR, else the user's.")]


@cache_app.command("info")
def cache_show(folder: CacheFolder = None, as_json: AsJson = False) -> None:
    """Say where measurements are kept, how many, and how much room they take."""
    from haq.execute import cache_folder, cache_info

    info = cache_info(folder or cache_folder())
    if as_json:
        print_json({**vars(info), "folder": str(info.folder)})
        return
    print_out(f"{info.folder}: {info.entries} measurements of {info.contexts} setups, {info.bytes:,} bytes")


@cache_app.command("clear")
def cache_clear(folder: CacheFolder = None) -> None:
    """Remove all measurements that are kept."""
    from haq.execute import cache_folder, clear_cache

    info = clear_cache(folder or cache_folder())
    print_out(f"{info.folder}: removed {info.entries} measurements")


@bench_app.command("regret")
def bench_regret(
    tables: Annotated[
        list[Path] | None, typer.Argument(metavar="[TABLE]...", help="Ground truths (JSON); default: all shipped.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for table, curves and plots.")] = Path("runs/regret"),
    strategies: Annotated[
        list[str] | None,
        typer.Option("--strategy", metavar="NAME[:OPTION=VALUE,...]", help="Strategy to run; may be repeated."),
    ] = None,
    shares: Annotated[
        list[float] | None,
        typer.Option("--share", help="Budget as the part of all policies within it; may be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 20,
    evaluations: Annotated[int, typer.Option(min=1)] = 100,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Metric that is budgeted; may be repeated. Default: bops and size_bytes."),
    ] = None,
    score: Annotated[str, typer.Option(help="What is searched for: the table's `metric`, or the least `loss`.")] = (
        "metric"
    ),
    answer: Annotated[
        str,
        typer.Option(help="The answer: the best `measured`, or the best by a fit to all that was (`fitted`)."),
    ] = "measured",
    as_json: AsJson = False,
) -> None:
    """Regret of strategies against the number of evaluations, on tables that hold every policy of a network."""
    with running() as bars:
        from haq.commands.bench import bench_regret as run_bench

        bars.stage("running strategies")
        document = run_bench(
            tables or [],
            strategies or [],
            out=out,
            seeds=seeds,
            evaluations=evaluations,
            shares=shares or [],
            metrics=metrics or [],
            score=score,
            answer=answer,
            progress=bars.step,
        )
    if as_json:
        print_json(document)
        return
    for about in dict.fromkeys(document["about"].values()):
        print_out(about)
    for table in document["about"]:
        print_out(regret_table([row for row in document["overall"] if row["table"] == table], title=table))
    print_out(f"table: {out / 'regret.csv'}")


def _version(show: bool) -> None:
    if show:
        print_out(f"haq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _fail(message: str, code: int) -> int:
    stderr.print(f"haq: {' '.join(message.split())}")
    return code


def _other(error: Exception) -> int:
    usage = getattr(error, "format_message", None)  # typer's own errors, whichever click it brings
    if type(error).__name__ == "NoArgsIsHelpError":
        stderr.print(str(error))
        return EXIT_INPUT
    if usage is not None:
        context = getattr(error, "ctx", None)
        hint = f"; see '{context.command_path} --help'" if context else ""
        return _fail(shortened(usage()).rstrip(".") + hint, EXIT_INPUT)
    if isinstance(error, OSError) and error.filename is not None:  # a name too long, a file that nobody may read, ...
        return _fail(shortened(f"{error.filename!r}: cannot be used: {error.strerror}"), EXIT_INPUT)
    return _fail(f"{type(error).__name__}: {shortened(str(error))} (set HAQ_DEBUG=1 for the traceback)", EXIT_OTHER)


def _interrupted() -> int:
    searching = sys.argv[1:2] in (["search"], ["profile"], ["sweep"])
    return _fail("interrupted" + "; add --resume to go on where it stopped" * searching, EXIT_INTERRUPTED)


def _usable_streams() -> None:
    """A closed stream swallows what is written; a character that the terminal's encoding lacks is escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line; map errors to one line and an exit code."""
    _usable_streams()
    sys.exit(_main())


def _main() -> int:
    try:
        outcome = app(standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BrokenPipeError:  # whoever read standard output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OTHER
    except Exception as error:
        if os.environ.get("HAQ_DEBUG"):
            raise
        if isinstance(error, InputError):
            return _fail(str(error), EXIT_INPUT)
        if isinstance(error, InfeasibleError):
            return _fail(str(error), EXIT_INFEASIBLE)
        return _other(error)
    if outcome == EXIT_INTERRUPTED:  # some releases of typer turn the interrupt into this
        return _interrupted()
    return outcome if isinstance(outcome, int) else 0


if __name__ == "__main__":
    main()
