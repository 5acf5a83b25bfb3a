"""A measured profile as the two files of a hardware profile: TOML, and the table of layers as CSV."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from haq.edges.cells import to_cell
from haq.edges.documents import write_text
from haq.hardware.sections import Measured, operation
from haq.profiling.fit import Fit
from haq.profiling.runtimes.base import FLOAT
from haq.values.formats import Precision
from haq.values.network import Network

_NS_PER_MS, _US_PER_MS = 1e6, 1e3


def write_profile(
    out: Path,
    network: Network,
    found: Fit,
    low: Precision,
    *,
    measured: Measured,
    runtime: str,
    source: str,
    notes: tuple[str, ...],
    watts: tuple[float, float] | None = None,
) -> None:
    """Write `out` (TOML) and the CSV file of the same name beside it.

    Args:
        out: ends in `.toml`.
        network: the layers.
        found: their costs and those of switches.
        low: the precision that was measured against float.
        measured: machine, noise and error.
        runtime: name, version and options.
        source: who measured, with the command.
        notes: what else the reader should know.
        watts: mean power in float and in low precision, where it was measured.

    Raises:
        InputError: a file cannot be written.
    """
    rows = ["layer,weight,activation,latency_ms,energy_mj"]
    for layer in network.layers:
        for index, (precision, times) in enumerate(((FLOAT, found.floating), (low, found.low))):
            ms = times[layer.name] / layer.calls
            energy = "" if watts is None else f"{ms * watts[index]:.7g}"
            rows.append(f"{quoted(layer.name)},{precision.weight},{precision.activation},{ms:.7g},{energy}")
    table = out.with_suffix(".csv")
    write_text(table, "\n".join(rows) + "\n")
    sections: list[tuple[str, Mapping[str, Any]]] = [
        ("", {"title": f"{measured.cpu}, {runtime.split(',')[0]}, {_threads(measured)}", "kind": "table", "batch": 1}),
        (
            "[device]",
            {"vendor": "measured here", "chip": measured.cpu, "runtime": runtime, "threads": measured.threads},
        ),
        ("[provenance]", _provenance(source, notes)),
        ("[measured]", measured.model_dump()),
        ("[[formats]]", {"pairs": ["wfp32afp32"]}),
        *_low_formats(network, found, low),
        (
            "[quantization]",
            {"weight_granularity": "channel", "weight_scheme": "symmetric", "activation_scheme": "affine"},
        ),
        ("[table]", {"file": table.name} | ({} if watts is None else {"energy": True})),
        *(("[[switch]]", row) for row in _conversions(found, "switch", low, watts)),
        *(("[[join]]", row) for row in _conversions(found, "join", low, watts)),
    ]
    top = 'input_format = "fp32"\n'
    text = "\n".join(_section(*section) for section in sections)
    write_text(out, text.replace('kind = "table"\n', f'kind = "table"\n{top}', 1))


def _threads(measured: Measured) -> str:
    return f"{measured.threads} thread{'s' if measured.threads > 1 else ''}"


def quoted(text: str) -> str:
    """A name as a cell of a CSV file."""
    shown = str(to_cell(text))
    return f'"{shown.replace(chr(34), 2 * chr(34))}"' if set(shown) & set(',"\r\n') else shown


def _provenance(source: str, notes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "source": source,
        "date": date.today(),
        "measured": "end-to-end times of all-float, all-int8 and mixed policies (median over interleaved rounds, each "
        "scaled to the same pace of the first two), and, where the runtime has one, its own profile of the first two",
        "derived": "layers: their shares of the two end-to-end times (without a profile: fitted, too); "
        "switches and joins: non-negative least squares "
        "on what is left of the mixed policies (only the sum of both directions is well determined)",
        "notes": list(notes),
    }


def _low_formats(network: Network, found: Fit, low: Precision) -> list[tuple[str, Mapping[str, Any]]]:
    """A row for each operation class: whether low precision is faster there, all layers of the class together."""
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for op in dict.fromkeys(operation(layer) for layer in network.layers):
        names = [layer.name for layer in network.layers if operation(layer) == op]
        faster = sum(found.low[name] for name in names) < sum(found.floating[name] for name in names)
        rows.append(("[[formats]]", {"pairs": [str(low)], "ops": [op], "accelerated": faster}))
    return rows


def _conversions(found: Fit, what: str, low: Precision, watts: tuple[float, float] | None) -> list[dict[str, Any]]:
    """Nanoseconds at a power in watts are nanojoules; the constant part's energy is left out."""
    return [
        {
            "from": written,
            "to": wanted,
            "fixed_us": float(f"{found.fixed[kind] * _US_PER_MS:.6g}"),
            "per_element_ns": float(f"{found.per_element[kind] * _NS_PER_MS:.6g}"),
            **(
                {}
                if watts is None
                else {"energy_pj_per_element": found.per_element[kind] * _NS_PER_MS * 1e3 * sum(watts) / 2}
            ),
        }
        for kind, written, wanted in (
            (f"{what}_down", "fp32", low.activation.name),
            (f"{what}_up", low.activation.name, "fp32"),
        )
    ]


def toml_text(sections: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Sections, each a header and its keys, as TOML."""
    return "\n".join(_section(*section) for section in sections)


def _section(header: str, values: Mapping[str, Any]) -> str:
    lines = [header] if header else []
    return "\n".join(lines + [f"{key} = {_toml(value)}" for key, value in values.items()]) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    return json.dumps(value, ensure_ascii=False)
