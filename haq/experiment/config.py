"""The experiment file: a typed value, checked when read. `load_experiment(path)` reads TOML."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from haq.edges.documents import read_toml
from haq.edges.validation import REFERENCE_PATTERN, Reference, Section, one_line
from haq.evaluate.settings import EvaluatorConfig
from haq.execute.settings import CacheConfig, ExecutorConfig
from haq.problem.settings import BUDGET_KEYS, Bound, SpaceConfig
from haq.quant.settings import QuantizationConfig
from haq.search.settings import SearchConfig
from haq.sensitivity.settings import SensitivityConfig
from haq.values.errors import InputError
from haq.values.trial import METRICS

_REFERENCE = re.compile(REFERENCE_PATTERN)
_NO_CODE = ("model.options", "data.options", "executor.address")
"""What goes to the function that is named beside it, or has the form of a reference and is none."""


class _NameOrFactory(Section):
    name: str | None = None
    factory: Reference | None = None
    options: dict[str, Any] = Field(default_factory=dict)

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

    targets: Literal["labels", "float_model", "float_probabilities", "float_outputs"] = "labels"
    """`float_model`: what it gives stands in for the labels, its class probabilities or, where the loss compares values
    (`mse`), its outputs; the last two say which, for a loss of your own. See docs/imagenet.md."""


class DeviceConfig(Section):
    """The target device."""

    profile: str | tuple[str, ...]
    """Name of a file in `hardware_profiles/` (without `.toml`), or the path of one; a list: one run for each."""
    command: str = ""
    """The script that times policies for `search.remeasure` and `haq validate`, where the profile was measured with
    one: a profile never says by itself what is run."""

    @field_validator("profile")
    @classmethod
    def _some(cls, profile: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = (profile,) if isinstance(profile, str) else profile
        if not all(names) or not names:
            raise ValueError("name a device, for example riscv_xpulpnn")
        if len(set(names)) != len(names):
            raise ValueError(f"{', '.join(names)}: a device appears twice in the list")
        return profile


class ExperimentConfig(Section):
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


def named_code(config: ExperimentConfig) -> tuple[str, str] | None:
    """The first key that makes an experiment run what is not `haq`'s own: `module:function`, or a command."""
    if config.device.command:
        return "device.command", config.device.command

    def search(value: Any, key: str) -> tuple[str, str] | None:
        if key in _NO_CODE:
            return None
        if isinstance(value, dict):
            found = (search(entry, f"{key}.{name}" if key else name) for name, entry in value.items())
            return next(filter(None, found), None)
        return (key, value) if isinstance(value, str) and _REFERENCE.fullmatch(value) else None

    return search(config.model_dump(mode="json"), "")


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
