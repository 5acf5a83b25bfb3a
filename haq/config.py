"""The experiment file: a typed value, checked when read. `load_experiment(path)` reads TOML."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from haq.errors import InputError
from haq.files import read_toml
from haq.types import METRICS, Format, Precision

Reference = Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
"""`module:function`, importable from the working directory or the folder of the experiment file."""
Bound = float | str | tuple[float | str, ...]
"""Of a budget: a number in the metric's unit, a percentage of uniform 8 bit, or several of them."""
Rung = Annotated[str, Field(pattern=r"^(ptq|bn|shared|qat|qat:[1-9][0-9]*)$")]
"""`ptq`, `bn`, `shared`, `qat`, or `qat:STEPS`: fine-tuning of so many steps."""
BUDGET_KEYS = (*METRICS, "average_weight_bits", "sensitivity", "accuracy_drop")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _NameOrFactory(_Section):
    name: str | None = None
    factory: Reference | None = None
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of_two(self) -> _NameOrFactory:
        if (self.name is None) == (self.factory is None):
            raise ValueError("give either `name` (of the zoo) or `factory` (your own module:function)")
        return self


class ModelConfig(_NameOrFactory):
    """The network: `name` in the zoo, or `factory`, your `module:function(**options)` that returns an `nn.Module`."""

    checkpoint: Path | None = None
    """Weights to load (safetensors, relative to the experiment file)."""
    float_modules: tuple[str, ...] = ()
    """Names or glob patterns of modules that compute with weights `haq` cannot quantize and that stay in float."""


class DataConfig(_NameOrFactory):
    """The data: `name` in the zoo, or `factory`, your `module:function(**options)` that returns `haq.DataSplits`."""

    targets: Literal["labels", "float_model"] = "labels"
    """`float_model`: its class probabilities stand in for the labels; see docs/imagenet.md."""


class DeviceConfig(_Section):
    """The target device."""

    profile: str | tuple[str, ...]
    """Name of a file in `hardware_profiles/` (without `.toml`), or the path of one; a list: one run for each."""

    @field_validator("profile")
    @classmethod
    def _some(cls, profile: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = (profile,) if isinstance(profile, str) else profile
        if not all(names) or not names:
            raise ValueError("name a device, for example riscv_xpulpnn")
        if len(set(names)) != len(names):
            raise ValueError(f"{', '.join(names)}: a device stands twice in the list")
        return profile


class SpaceConfig(_Section):
    """Which precisions the search may choose from: what is asked for here, restricted to what the device supports."""

    weights: tuple[str, ...] = ("int2", "int4", "int8")
    activations: tuple[str, ...] = ("int8",)
    layers: dict[str, tuple[str, ...]] = {}
    """Layer name or glob pattern -> precisions (`["w8a8"]`), in place of the product above; the last match counts."""
    first_last: tuple[str, ...] = ()
    """Precisions for the first and the last layer (`["w8a8"]`); empty: like all others."""
    ties: tuple[tuple[str, ...], ...] = ()
    """Groups of layers that take the same precision."""

    @field_validator("weights", "activations")
    @classmethod
    def _formats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one format")
        for name in names:
            Format.parse(name)
        return tuple(dict.fromkeys(names))

    @field_validator("first_last")
    @classmethod
    def _precisions(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            Precision.parse(name)
        return tuple(dict.fromkeys(names))

    @field_validator("layers")
    @classmethod
    def _layer_precisions(cls, layers: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for layer, names in layers.items():
            if not names:
                raise ValueError(f"{layer!r} needs at least one precision")
            for name in names:
                Precision.parse(name)
        return layers


class QuantizationConfig(_Section):
    """How numbers become integers. What is left out comes from the device profile, else from the defaults here."""

    weight_granularity: Literal["tensor", "channel", "group"] | None = None
    """Default: `channel`."""
    group_size: int = Field(64, ge=1)
    weight_scheme: Literal["symmetric", "affine"] | None = None
    """Default: `symmetric`."""
    activation_scheme: Literal["symmetric", "affine"] | None = None
    """Default: `affine`."""
    weight_calibration: Literal["minmax", "percentile", "mse", "balanced", "entropy"] | None = None
    """Default: `balanced`: squared error with more weight on changes of gain and mean, which do not average out."""
    activation_calibration: Literal["minmax", "percentile", "mse", "entropy"] | None = None
    """Default: `mse`."""
    percentile: float = Field(99.99, gt=50, le=100)
    calibration_samples: int = Field(512, ge=1)
    batch_norm: Literal["keep", "fold", "reestimate"] = "keep"
    """`fold` into the weights before quantizing; `reestimate` running statistics of each policy on calibration data."""
    bias_correction: bool = False


class SensitivityConfig(_Section):
    """How the loss increase of each choice is predicted."""

    metric: str = "fisher"
    samples: int = Field(512, ge=1)
    batch_size: int = Field(128, ge=1)
    file: Path | None = None
    """Reuse (or write) the table in this file instead of the run folder; refused when its signature differs."""
    interactions: int = Field(0, ge=0)
    """Passes over the samples to spend on what pairs of layers lose together; 0: losses are taken to add up."""


class SearchConfig(_Section):
    """Which strategy searches, and for how long."""

    strategy: str = "ilp"
    max_trials: int = Field(8, ge=1)
    """How many policies to measure; the uniform and greedy baselines come on top."""
    parallel: int | None = Field(None, ge=1)
    """How many proposals may be open at once; default: the number of workers. With the seed, fixes what is proposed."""
    remeasure: int = Field(0, ge=0)
    """With a profile of `haq profile`: time this many of the best policies end to end, correct, and solve again."""
    answer: Literal["measured", "fitted"] = "measured"
    """The answer: the best score on the search split, or the least loss by a fit to all that was measured, which takes
    the noise of few samples out."""
    options: dict[str, Any] = {}
    """Options of the strategy, e.g. `time_limit`, `gap`."""


class QATConfig(_Section):
    """How a policy is fine-tuned: quantization-aware training on the train split, from the float model."""

    quantizer: Literal["lsq", "pact", "dorefa", "ste"] = "lsq"
    """Of integer formats."""
    ternary: Literal["twn", "ttq"] = "twn"
    """Of ternary weights: scales that follow the weights, or trained ones."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the fine-tuning data; 1 when `steps` is left out, too."""
    steps: int | None = Field(None, ge=1)
    samples: int | None = Field(None, ge=1)
    """Samples of the train split, from its start; all when left out."""
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of `sgd`."""
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    distillation: Literal["none", "kl", "mse"] = "none"
    """How outputs are drawn to the float model's; those are computed once."""
    distillation_weight: float = Field(0.5, gt=0, le=1)
    """Of the distillation, the rest is the loss itself; 1 needs no targets."""
    temperature: float = Field(1.0, gt=0)
    """Of `kl`."""
    training_step: Reference | None = None
    """Your own `module:function(model, inputs, targets)` -> scalar loss, in place of loss and distillation."""
    start: Literal["calibration", "shared"] = "calibration"
    """`shared`: weights and step sizes of one training over random policies of the space."""
    shared_epochs: float = Field(1.0, gt=0)
    """Of that training."""
    compile: bool = False
    autocast: bool = False
    """Compute in bfloat16 where torch's autocast does."""

    @model_validator(mode="after")
    def _no_contradictions(self) -> QATConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either `epochs` or `steps`")
        if self.training_step is not None and self.distillation != "none":
            raise ValueError("`training_step` computes the loss itself; leave out `distillation`")
        if self.distillation == "none" and self.distillation_weight != 0.5:
            raise ValueError("`distillation_weight` needs `distillation`")
        if self.distillation != "kl" and self.temperature != 1.0:
            raise ValueError("`temperature` is for distillation = 'kl'")
        if self.optimizer != "sgd" and self.momentum != 0.9:
            raise ValueError("`momentum` is for optimizer = 'sgd'")
        return self


class EvaluatorConfig(_Section):
    """How a policy is measured."""

    kind: Literal["ptq", "bn", "qat", "shared"] = "ptq"
    """After training; with batch norm re-estimated; fine-tuned; with weights trained once for all policies."""
    samples: int | None = Field(None, ge=1)
    """Samples of the search split to score on; all when left out."""
    batch_size: int = Field(64, ge=1)
    metric: str = "accuracy"
    """`accuracy`, `negative_mse`, against the float model `agreement` and `negative_kl`, or your own
    `module:function(outputs, targets)` -> mean score, larger is better."""
    loss: str = "cross_entropy"
    """`cross_entropy`, `mse`, `kl_divergence` from the float model, or your own `module:function(outputs, targets)` ->
    scalar tensor."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto`: a CUDA GPU where torch sees one (with Ray: where workers reserve one), else the CPU; or `cpu`, `cuda`,
    `cuda:1`."""
    amp: bool = False
    """Policies are scored in bfloat16 autocast: less exact, and faster where the processor computes in bfloat16."""
    qat: QATConfig | None = None
    """How `qat` and `shared` train."""
    ladder: tuple[Rung, ...] = ()
    """Fidelities, cheapest first: the search measures on the first, its best policies climb to the last."""
    reduction: float = Field(3.0, gt=1)
    """Of the ladder: one in so many goes on from rung to rung."""

    @property
    def rungs(self) -> tuple[str, ...]:
        """The ladder, or the one kind there is."""
        return self.ladder or (self.kind,)

    @property
    def trains(self) -> bool:
        """Whether a policy is trained, alone or jointly, on some rung."""
        return any(rung.startswith(("qat", "shared")) for rung in self.rungs)

    @model_validator(mode="after")
    def _training_is_used(self) -> EvaluatorConfig:
        if self.qat is not None and not self.trains:
            raise ValueError("`qat` settings need kind = 'qat' or 'shared', or a ladder with such a rung")
        return self

    @model_validator(mode="after")
    def _ladder_fits(self) -> EvaluatorConfig:
        if self.ladder and (len(self.ladder) < 2 or len(set(self.ladder)) < len(self.ladder)):
            raise ValueError("`ladder` needs two rungs or more, each once")
        if self.ladder and self.ladder[0] != self.kind:
            raise ValueError(
                f"`ladder` begins with {self.ladder[0]!r}, the search measures {self.kind!r}: make kind the same"
            )
        if not self.ladder and self.reduction != 3.0:
            raise ValueError("`reduction` needs a `ladder`")
        return self


class CacheConfig(_Section):
    """Measurements kept between runs; see docs/distributed.md."""

    enabled: bool = True
    folder: Path | None = None
    """Relative to the experiment file; default: the user's cache directory. `$HAQ_CACHE_DIR` goes before it."""


class ExecutorConfig(_Section):
    """Who evaluates the policies; see docs/distributed.md. All but `kind` need `kind = "ray"`."""

    kind: Literal["local", "ray"] = "local"
    workers: int | None = Field(None, ge=1)
    """Default: as many as this machine has processors."""
    address: str | None = None
    """Of an existing Ray cluster (`host:port`, `auto`); default: one on this machine, for this run."""
    cpus_per_worker: float | None = Field(None, gt=0)
    """Reserved in the cluster; default: 1. Without `threads`, a worker has so many; else its share of this machine."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """Reserved in the cluster; may be a fraction."""
    time_limit: float | None = Field(None, gt=0)
    """Seconds for each evaluation; one that takes longer has failed."""
    retries: int = Field(2, ge=0)
    """How often a policy whose worker died is tried again."""

    @model_validator(mode="after")
    def _used(self) -> ExecutorConfig:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        idle = [name for name, default in defaults.items() if name != "kind" and getattr(self, name) != default]
        if self.kind == "local" and idle:
            raise ValueError(f"{idle[0]}: needs kind = 'ray'; in this process one policy runs after the other")
        return self


class ExperimentConfig(_Section):
    """One experiment: a model, data, a device and budgets."""

    schema_version: Literal[1] = 1
    name: str = Field("experiment", pattern=r"^\w[\w.-]*$")
    seed: int = Field(0, ge=0)
    threads: int | None = Field(None, ge=1)
    """Torch threads, at most as many as there are processors; default: torch's own choice."""
    model: ModelConfig
    data: DataConfig
    device: DeviceConfig
    space: SpaceConfig = SpaceConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    sensitivity: SensitivityConfig = SensitivityConfig()
    search: SearchConfig = SearchConfig()
    evaluator: EvaluatorConfig = EvaluatorConfig()
    cache: CacheConfig = CacheConfig()
    executor: ExecutorConfig = ExecutorConfig()
    objective: str = "sensitivity"
    budgets: dict[str, Bound]
    """Metric -> upper bound: a number in the metric's unit, or `"60%"` of what uniform 8 bit costs; a list of them for
    one metric: one run for each, a front."""

    @field_validator("objective")
    @classmethod
    def _objective(cls, name: str) -> str:
        known = (*METRICS, "average_weight_bits", "sensitivity")
        if name not in known:
            raise ValueError(f"unknown objective {name!r}; known: {', '.join(known)}")
        return name

    @model_validator(mode="after")
    def _fits_a_loss(self) -> ExperimentConfig:
        if self.search.answer == "fitted" and (self.objective != "sensitivity" or "accuracy_drop" in self.budgets):
            raise ValueError(
                "`search.answer` = 'fitted' fits the loss that is minimised: it needs objective = 'sensitivity' and "
                "no budgets.accuracy_drop"
            )
        return self

    @field_validator("budgets", mode="before")
    @classmethod
    def _budgets(cls, budgets: Any) -> Any:
        if not isinstance(budgets, dict):
            return budgets
        if not budgets:
            raise ValueError("name at least one budget, for example latency_ms = 4.0")
        for key, value in budgets.items():
            if key not in BUDGET_KEYS:
                raise ValueError(f"unknown budget {key!r}; known: {', '.join(BUDGET_KEYS)}")
            _check_bounds(key, value)
        if sum(isinstance(value, list) for value in budgets.values()) > 1:
            raise ValueError("only one budget may list several bounds")
        return {key: tuple(value) if isinstance(value, list) else value for key, value in budgets.items()}


def _check_bounds(key: str, value: Any) -> None:
    bounds = value if isinstance(value, list) else [value]
    if not bounds or len({str(bound) for bound in bounds}) != len(bounds):
        raise ValueError(f"{key} = {value!r}: list each bound once")
    for bound in bounds:
        if not 0 < _number(bound) < math.inf:
            raise ValueError(
                f'{key} = {bound!r}: a budget is a number above 0, or a percentage of uniform 8 bit such as "60%"'
            )


def _number(value: Any) -> float:
    """4 of `4`, 60 of `"60%"`; NaN where it is neither a number nor a percentage."""
    try:
        if isinstance(value, str):
            return float(value.removesuffix("%")) if value.endswith("%") else math.nan
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _set(document: dict[str, Any], assignment: str) -> None:
    key, _, text = assignment.partition("=")
    *path, last = _key_parts(key, assignment)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        value = text
    table = document
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {assignment}: {part} is a value, not a section")
    table[last] = value


def _key_parts(key: str, assignment: str) -> list[str]:
    """`space`, `layers`, `block.conv1` of `space.layers."block.conv1"`, as TOML reads keys."""
    try:
        found: Any = tomllib.loads(f"{key} = 0") if "\n" not in key and "=" in assignment else {}
    except ValueError:
        found = {}
    parts = []
    while isinstance(found, dict) and len(found) == 1:
        (part, found), *_ = found.items()
        parts.append(part)
    if not parts:
        raise InputError(f"--set {assignment}: write key.sub=value")
    return parts


def one_line(error: ValidationError) -> str:
    """The first problem of a pydantic error as `key: what is wrong (got value)`."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"]) or "top level"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; remove it or check its spelling"
    if first["type"] == "missing":
        return f"{key}: missing; add it"
    more = error.error_count() - 1
    got = repr(first["input"])
    shown = f" (got {got[:80]}{'…' if len(got) > 80 else ''})" if first["type"] != "value_error" else ""
    return f"{key}: {message}{shown}{f'; and {more} more' if more else ''}"


def load_experiment(path: str | Path, *, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read an experiment file.

    Args:
        path: a TOML file.
        overrides: `key.sub=value` assignments that take precedence, values in TOML notation (a bare word is a string).

    Raises:
        InputError: one line naming the file, the key, the value and the remedy.
    """
    file = Path(path)
    document = read_toml(file)
    for assignment in overrides:
        _set(document, assignment)
    try:
        # By way of JSON, pydantic can be strict (no `seed = true`) and still take lists for tuples and text for paths.
        return ExperimentConfig.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        raise InputError(f"{file}: {one_line(error)}") from error
