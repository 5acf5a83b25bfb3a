"""`haq hardware template` and `check`: own measurements as a profile."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

import typer

from haq.commands.options import AsJson, ExperimentFile, Overrides, experiment_of
from haq.commands.terminal import print_json, print_out, running
from haq.edges.documents import write_text
from haq.values.errors import InputError


def template(
    experiment: ExperimentFile,
    precisions: Annotated[
        str, typer.Option(help="Precisions to measure, separated by commas, e.g. w8a8,w4a8.")
    ] = "w8a8",
    out: Annotated[Path | None, typer.Option(help="Write the CSV file there; default: print it.")] = None,
    overrides: Overrides = None,
) -> None:
    """Print the CSV table to fill in for an own device: a row for each layer shape of the model and precision."""
    with running() as bars:
        from haq.hardware.kinds.table import COLUMNS, shape_key
        from haq.values.formats import Precision

        bars.stage("tracing the model")
        try:
            wanted = [Precision.parse(text.strip()) for text in precisions.split(",")]
        except ValueError as error:
            raise InputError(f"--precisions {precisions}: {error}") from error
        network = experiment_of(experiment, overrides).network
        stream = io.StringIO()
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(COLUMNS)
        for key in dict.fromkeys(shape_key(layer) for layer in network.layers):
            rows.writerows([key, pair.weight.name, pair.activation.name, "", ""] for pair in wanted)
        if out is not None:
            if out.exists():
                raise InputError(f"--out {out}: already exists; name another file")
            write_text(out, stream.getvalue())
    print_out(f"wrote {out}" if out is not None else stream.getvalue().rstrip())


def check(
    profile: Annotated[str, typer.Argument(metavar="PROFILE", help="Name or path of a hardware profile.")],
    experiment: Annotated[
        Path | None, typer.Option(help="Also: does it price every layer and choice of this experiment?")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check a hardware profile and the files beside it; with --experiment, that no row is missing."""
    with running():
        from haq.hardware import build_cost_model, load_profile

        loaded = load_profile(profile)
        model = build_cost_model(loaded)
        missing: list[str] = []
        if experiment is not None:
            network = experiment_of(experiment, overrides).network
            for layer in network.layers:
                for precision in model.supported(layer):
                    try:
                        model.layer_cost(layer, precision)
                    except InputError as error:
                        missing.append(str(error))
        if missing:
            raise InputError(f"{profile}: {len(missing)} costs are missing: {'; '.join(missing)}")
    document = loaded.summary()
    if as_json:
        print_json(document)
        return
    print_out(f"{document['name']}: {document['title']}: fine; it models {', '.join(document['metrics'])}")
