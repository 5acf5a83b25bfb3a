"""Reading a run folder: everything a report needs is in its files, checked when read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from haq.values.formats import Format, Precision
from haq.values.policy import Policy

PolicyDoc = Annotated[Policy, BeforeValidator(Policy.from_doc)]
PrecisionText = Annotated[Precision, BeforeValidator(Precision.parse)]
FormatName = Annotated[str, AfterValidator(lambda name: Format.parse(name).name)]


_SECTIONS = ("model", "data", "quantization", "sensitivity", "search", "evaluator")


def _of_sections(record: dict[str, Any]) -> dict[str, Any]:
    for name in _SECTIONS:
        if not isinstance(record.get(name, {}), dict):
            raise ValueError(f"{name}: expected an object, got {record[name]!r:.80}")
    return record


Record = Annotated[dict[str, Any], AfterValidator(_of_sections)]
"""The experiment of a run, as it was; a later `haq` may read other keys in it."""


class _Doc(BaseModel):
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class Provenance(_Doc):
    """`provenance` of `policy.json`: where a policy is from, as far as a report shows it."""

    command: str = ""
    date: str = ""
    versions: dict[str, Any] = {}
    hashes: dict[str, Any] = {}
    splits: dict[str, Any] = {}
    quantization: dict[str, Any] = {}


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


class FloatCost(_Doc):
    """What one module holds and computes in float."""

    name: str
    kind: str = ""
    params: float = 0
    bytes: float = 0
    macs: float = 0
    costs: dict[str, float] = {}
    missing: list[str] = []


class Coverage(_Doc):
    """How much of the model the answer quantizes."""

    params: float
    quantized_params: float
    bytes: float
    quantized_bytes: float
    macs: float
    quantized_macs: float
    line: str = ""

    @property
    def bytes_percent(self) -> float:
        """Share of the deployed model's bytes that is quantized."""
        return 100.0 * self.quantized_bytes / self.bytes if self.bytes else 100.0


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
    floats: list[FloatCost] = Field([], alias="float")
    coverage: Coverage | None = None
    lower_bounds: dict[str, list[str]] = {}
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
    costs: dict[str, float] = {}


class Result(_Doc):
    """`result.json`."""

    schema_version: Literal[1]
    experiment: Record
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
    eight_bit: Entry | None = None
    headline: str = ""
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
