"""Reading a run folder: everything a report needs is in its files, checked when read."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from haq.config import one_line
from haq.errors import InputError
from haq.files import read_json
from haq.types import Format, Policy, Precision, Trial

PolicyDoc = Annotated[Policy, BeforeValidator(Policy.from_doc)]
PrecisionText = Annotated[Precision, BeforeValidator(Precision.parse)]
FormatName = Annotated[str, AfterValidator(lambda name: Format.parse(name).name)]


class _Doc(BaseModel):
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class Entry(_Doc):
    """A policy, what it is predicted to cost and what it scored (`None`: not measured, or the evaluation failed)."""

    name: str
    source: str = ""
    policy: PolicyDoc
    costs: dict[str, float]
    score: float | None = None
    test_score: float | None = None
    test_noise: float | None = None


class LayerCost(_Doc):
    """One layer of the answer."""

    name: str
    precision: PrecisionText
    costs: dict[str, float]
    macs: float | None = None
    params: float | None = None


class SwitchCost(_Doc):
    """A tensor that is converted for those of its consumers that want another format than it was written in."""

    tensor: str
    producer: str | None = Field(None, alias="from")
    to: list[str]
    written: FormatName
    wanted: FormatName
    costs: dict[str, float]


class JoinCost(_Doc):
    """An operand of an add or concat that is converted to the format of the operand computed last."""

    name: str
    owner: str | None = None
    other: str | None = None
    written: FormatName
    wanted: FormatName
    costs: dict[str, float]


class Peak(_Doc):
    """The step of the network at which activation memory is largest."""

    step: str
    bytes: float


class Breakdown(_Doc):
    """Where the answer's cost comes from."""

    layers: list[LayerCost]
    switches: list[SwitchCost] = []
    joins: list[JoinCost] = []
    peak: Peak | None = None
    totals: dict[str, float] = {}
    batch: int = 1


class MarginalPoint(_Doc):
    """The best objective at one budget; `None` where no policy meets it."""

    budget: float
    objective: float | None


class Marginal(_Doc):
    """How the best objective depends on one budget, the others held."""

    budget: float
    points: list[MarginalPoint]


class Device(_Doc):
    """The device as its profile names it."""

    name: str
    title: str = ""
    metrics: list[str] = []
    provenance: dict[str, Any] = {}


class FloatScores(_Doc):
    """What the float model scores."""

    search_score: float | None = None
    test_score: float | None = None


class Result(_Doc):
    """`result.json`."""

    schema_version: Literal[1]
    experiment: dict[str, Any]
    device: Device
    objective: str
    budgets: dict[str, float]
    status: str
    bound: float | None = None
    predicted_optimum: float | None = None
    metric: str
    score_unit: str = ""
    unquantized: FloatScores = Field(alias="float")
    score_noise: float | None = None
    answer: Entry
    baselines: dict[str, Entry | None] = {}
    verdict: str = ""
    references: list[Entry] = []
    trials: int = 0
    seconds: dict[str, float] = {}
    breakdown: Breakdown
    marginal: dict[str, Marginal] = {}
    warnings: list[str] = []
    command: str = ""

    @property
    def score_name(self) -> str:
        """What the score is called in figures: `balanced accuracy` for `my_module:balanced_accuracy`."""
        return self.metric.rpartition(":")[2].replace("_", " ")

    @property
    def score_axis(self) -> str:
        """The label of an axis of scores."""
        return f"{self.score_name} [{self.score_unit}]" if self.score_unit else self.score_name


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
