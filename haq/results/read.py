"""Reading a run folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from haq.edges.documents import read_json
from haq.edges.validation import one_line
from haq.results.schema import (
    Result,
)
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
        found = "has no result.json" if path.is_dir() else "is no folder"
        raise InputError(f"{path}: {found}; give the folder of a finished run (haq search EXPERIMENT --out {path})")
    file = path / "result.json"
    try:
        result = Result.model_validate(read_json(file))
    except ValidationError as error:
        raise InputError(f"{file}: {one_line(error)}") from error
    policy = read_json(path / "policy.json")
    provenance = policy.get("provenance") if isinstance(policy, dict) else None
    if not isinstance(provenance, dict):
        raise InputError(f"{path / 'policy.json'}: no section `provenance`; the file was not written by haq search")
    return Run(path, result, provenance, _trials(path / "trials.jsonl"), load_sensitivities(path / "sensitivity.csv"))


def _trials(file: Path) -> tuple[Trial, ...]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    trials = []
    for number, line in enumerate(lines, start=1):
        try:
            doc = json.loads(line) if line.strip() else {}
            if "policy" in doc:  # the header has none
                trials.append(Trial.from_doc(doc))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):  # a run that was killed leaves a torn last line, without its newline
                break
            raise InputError(f"{file}: line {number} is no trial: {error!r}; the file is damaged") from error
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
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                name = Format.parse(row["format"]).name
                table.setdefault((row["layer"], row["kind"]), {})[name] = float(row["sensitivity"])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{file}: not a table of layer, kind, format, sensitivity: {error}") from error
    return table
