"""Reading a run folder."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from haq.edges.cells import from_cell
from haq.edges.documents import LARGEST_JOURNAL, parse_json, read_json, read_text
from haq.edges.validation import one_line
from haq.results.schema import Provenance, Result
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.trial import Trial


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the folder.
        result: `result.json`.
        provenance: of `policy.json`: versions, hashes, command.
        trials: `trials.jsonl` in order.
        sensitivities: (layer, `weight` or `activation`) -> format name -> predicted loss increase; empty when the run
            has no `sensitivity.csv`.
    """

    path: Path
    result: Result
    provenance: Mapping[str, Any]
    trials: tuple[Trial, ...]
    sensitivities: Mapping[tuple[str, str], Mapping[str, float]]

    @property
    def name(self) -> str:
        return str(self.result.experiment.get("name") or self.path.resolve().name)

    def sensitivity(self, layer: str, precision: Precision) -> float | None:
        """Predicted loss increase of one layer in one precision; `None` where the table has no entry for it."""
        weight = self.sensitivities.get((layer, "weight"), {}).get(precision.weight.name)
        activation = self.sensitivities.get((layer, "activation"), {}).get(precision.activation.name)
        if weight is None and activation is None:
            return None
        return (weight or 0.0) + (activation or 0.0)

    @property
    def strategy(self) -> str:
        return str(self.result.experiment.get("search", {}).get("strategy", ""))


def load_run(folder: str | Path) -> Run:
    """Read the folder that `haq search` wrote.

    Raises:
        InputError: no such folder, not a run, or a damaged file; one line with the file.
    """
    path = Path(folder)
    if not (path / "result.json").is_file():
        found = "has no result.json" if path.is_dir() else "is not a folder"
        raise InputError(f"{path}: {found}; give the folder of a finished run (haq search EXPERIMENT --out {path})")
    result = load_result(path / "result.json")
    policy = read_json(path / "policy.json")
    provenance = policy.get("provenance") if isinstance(policy, dict) else None
    if not isinstance(provenance, dict):
        raise InputError(f"{path / 'policy.json'}: no section `provenance`; the file was not written by haq search")
    try:
        Provenance.model_validate(provenance)
    except ValidationError as error:
        raise InputError(f"{path / 'policy.json'}: {one_line(error, prefix='provenance')}") from error
    return Run(path, result, provenance, _trials(path / "trials.jsonl"), load_sensitivities(path / "sensitivity.csv"))


def load_result(file: Path) -> Result:
    """Read `result.json`.

    Raises:
        InputError: it is none, or damaged.
    """
    try:
        return Result.model_validate(read_json(file))
    except ValidationError as error:
        raise InputError(f"{file}: {one_line(error)}") from error


def _trials(file: Path) -> tuple[Trial, ...]:
    lines = read_text(file, limit=LARGEST_JOURNAL).split("\n")
    trials = []
    for number, line in enumerate(lines, start=1):
        try:
            doc = parse_json(line) if line.strip() else {}
            if doc and "setup" not in doc:  # the header has one
                trials.append(Trial.from_doc(doc))
        except (ValueError, TypeError) as error:
            if number == len(lines):  # a run that was killed leaves a torn last line, without its newline
                break
            raise InputError(f"{file}: line {number} is no trial: {error}; the file is damaged") from error
    return tuple(sorted(trials, key=lambda trial: trial.number))  # several at a time are written as they are done


def load_sensitivities(file: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Read `sensitivity.csv`: (layer, `weight` or `activation`) -> format name -> sensitivity; empty without a file.

    Raises:
        InputError: the file is no such table.
    """
    if not file.exists():
        return {}
    table: dict[tuple[str, str], dict[str, float]] = {}
    try:
        for row in csv.DictReader(StringIO(read_text(file), newline=""), strict=True):
            name, value = Format.parse(row["format"]).name, float(row["sensitivity"])
            if not row["layer"] or row["kind"] not in ("weight", "activation") or not 0 <= value < math.inf:
                raise ValueError(f"{row['layer']!r:.80}, {row['kind']!r:.80}, {name}: {value}")
            table.setdefault((from_cell(row["layer"]), row["kind"]), {})[name] = value
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{file}: not a table of layer, kind, format, sensitivity: {error}") from error
    return table
