"""`haq serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from haq.commands.options import Overrides, experiment_of
from haq.commands.terminal import print_out, running, stderr
from haq.values.errors import InputError

if TYPE_CHECKING:
    from haq.serve.calibrator import Source as CalibrationSource


def serve(
    source: Annotated[Path, typer.Argument(metavar="FAMILY_OR_RUN", help="Folder of haq family or haq search.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is reached from this machine only.")] = (
        "127.0.0.1"
    ),
    window: Annotated[float, typer.Option(min=0, max=1000, help="Milliseconds that a batch waits for more.")] = 2.0,
    batch: Annotated[int, typer.Option(min=1, help="Samples that are run together.")] = 64,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; beyond it: 503.")] = 64,
    max_bytes: Annotated[int, typer.Option(min=1, help="Of a request's body.")] = 16 << 20,
    max_samples: Annotated[int, typer.Option(min=1, help="In one request.")] = 1024,
    threads: Annotated[int, typer.Option(min=1, help="Of ONNX Runtime, for one operator.")] = 1,
    controller: Annotated[
        Path | None, typer.Option(help="Controller file; default: the family's controller.json, if it has one.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder for what the service keeps; default: serving, in the source.")
    ] = None,
    calibrate: Annotated[bool, typer.Option(help="Renew activation ranges when what comes in drifts.")] = True,
    reservoir_bytes: Annotated[int, typer.Option(min=1, help="Of the newest inputs, kept for that.")] = 16 << 20,
    false_alarms: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="Share of windows without drift that look like it.")
    ] = 0.01,
    experiment: Annotated[
        Path | None, typer.Option(help="Experiment file; default: the one that the source holds.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Serve a family, or a run's policy, over HTTP: POST /predict, GET /health, GET /metrics."""
    if experiment is None and overrides:
        raise InputError("--set: overrides keys of an experiment file; add --experiment")
    if controller is not None and not controller.is_file():
        raise InputError(f"--controller {controller}: no such file")
    try:
        from haq.serve.app import Limits, make_app
        from haq.serve.metrics import Metrics
        from haq.serve.server import bind
        from haq.serve.server import serve as run
    except ImportError as error:
        raise InputError(f"haq serve needs the package {error.name}: pip install 'haq[serve]'") from error
    from haq.adaptive.controller import controller_of
    from haq.serve.calibrator import Calibrator, resumed
    from haq.serve.engine import Engine
    from haq.serve.log import Log
    from haq.serve.reservoir import Reservoir, check_budget

    kept = state or source / "serving"
    made = _family(source, kept, experiment, overrides, threads)
    log = Log(kept) if calibrate else None
    version = resumed(made, kept, log)
    family = version.family
    chosen = controller_of(controller or made.family, members=len(family.members))
    metrics, reservoir, background = Metrics(), Reservoir(reservoir_bytes), []
    engine = Engine(
        version, chosen, window=window / 1000, most=batch, queue=queue, seen=reservoir.add if calibrate else None
    )
    if log:
        check_budget(reservoir_bytes, [shape for _, shape, _ in family.inputs])
        calibrator = Calibrator(engine, reservoir, made, kept, log, metrics, alarms=false_alarms, tell=stderr.print)
        background.append(calibrator.run)
    listening = bind(host, port)
    app = make_app(engine, metrics, Limits(bytes=max_bytes, samples=max_samples), background)
    name = f"[{host}]" if ":" in host else host
    where = f"http://{name}:{listening.getsockname()[1]}"
    run(app, listening, lambda: print_out(f"serving {len(family.members)} members on {where} (stop: Ctrl-C)"))


def _family(
    source: Path, kept: Path, experiment: Path | None, overrides: list[str] | None, threads: int
) -> CalibrationSource:
    """The family that is served: the source, or one made of a run's policy."""
    from haq.serve.calibrator import Source
    from haq.serve.start import family_of_run, is_family

    folder = source
    with running() as bars:
        if not is_family(source):
            from haq.runs.family import family_experiment

            pieces = experiment_of(experiment, overrides) if experiment else family_experiment(source)
            folder = family_of_run(source, pieces, kept, bars)
    return Source(folder, experiment, tuple(overrides or ()), threads)
