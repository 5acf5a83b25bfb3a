"""`haq hardware`: the devices that have a profile, and one's own measurements as another."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

import typer

from haq.commands.options import (
    AsJson,
    ExperimentFile,
    Overrides,
    experiment_of,
)
from haq.commands.terminal import (
    new_table,
    print_json,
    print_out,
    running,
)
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


_MOST_PRECISIONS = 9


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


def hardware_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a profile, or the path of one (.toml).")],
) -> None:
    """Print one device profile, with its provenance, as JSON."""
    from haq.hardware import load_profile

    print_json(load_profile(name).to_doc())
