"""The problem document: its schema, and every check that needs no arithmetic. `haq.problem` turns it into tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from haq.edges.validation import one_line
from haq.values.errors import InputError
from haq.values.formats import Format, Precision

SENSITIVITY = "sensitivity"
PEAK = "peak_activation_bytes"

Name = Annotated[str, Field(min_length=1)]
Number = float
NonNegative = Annotated[float, Field(ge=0)]
Matrix = list[list[NonNegative]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ChoiceDoc(_Part):
    """One precision that a layer may take, what it is predicted to lose and to cost."""

    weight_bits: int | None = None
    activation_bits: int | None = None
    weight_format: str | None = None
    activation_format: str | None = None
    sensitivity: Number
    costs: dict[Name, NonNegative]


class LayerDoc(_Part):
    """A layer and its choices, at least one."""

    name: Name
    choices: Annotated[list[ChoiceDoc], Field(min_length=1)]


class EdgeDoc(_Part):
    """What a pair of choices costs: rows index the choices of `from`, columns those of `to`."""

    source: Name = Field(alias="from")
    target: Name = Field(alias="to")
    metric: Name
    costs: Matrix


class TensorDoc(_Part):
    """What it costs to hand a tensor to its readers: charged once per distinct format among them."""

    source: Name | None = Field(alias="from")
    targets: Annotated[list[Name], Field(min_length=1, alias="to")]
    metric: Name
    activation_bits: list[int] | None = None
    activation_formats: list[str] | None = None
    costs: Matrix


class InteractionDoc(_Part):
    """What two layers lose together beyond the sum of what each loses alone; of either sign."""

    between: Annotated[list[Name], Field(min_length=2, max_length=2)]
    costs: list[list[Number]]


class StepDoc(_Part):
    """The activation memory of one execution step: `fixed` plus one entry per live layer, by its choice."""

    step: str
    fixed: NonNegative = 0.0
    live: dict[Name, list[NonNegative]] = {}


class ProblemDoc(_Part):
    """A whole problem document, schema version 1."""

    schema_version: Literal[1]
    layers: Annotated[list[LayerDoc], Field(min_length=1)]
    ties: list[list[Name]] = []
    activation_ties: list[list[Name]] = []
    edges: list[EdgeDoc] = []
    tensors: list[TensorDoc] = []
    interactions: list[InteractionDoc] = []
    peak: list[StepDoc] = []
    offsets: dict[Name, Number] = {}
    budgets: dict[Name, Number]
    objective: Name


def parse(doc: Any) -> ProblemDoc:
    """Check the form of a problem document.

    Raises:
        InputError: one line naming the key, the value and the remedy.
    """
    try:
        return ProblemDoc.model_validate(doc)
    except ValidationError as error:
        raise InputError(_named(one_line(error), doc)) from error


def _named(message: str, doc: Any) -> str:
    """Put the layer's name behind `layers.17`: nobody counts to seventeen."""
    parts = message.split(":", 1)[0].split(".")
    if len(parts) > 1 and parts[0] == "layers" and parts[1].isdigit():
        entry = doc["layers"][int(parts[1])]
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
            return message.replace(f"layers.{parts[1]}", f"layers.{parts[1]} ({entry['name']})", 1)
    return message


def precisions(layer: LayerDoc) -> tuple[Precision, ...]:
    """The precisions of a layer's choices, in order.

    Raises:
        InputError: a choice that is no precision, or a precision that appears twice.
    """
    found: dict[Precision, int] = {}
    for index, choice in enumerate(layer.choices):
        try:
            precision = _precision(
                choice.weight_bits, choice.activation_bits, choice.weight_format, choice.activation_format
            )
        except ValueError as error:
            raise InputError(f"layer {layer.name}: choice {index}: {error}") from error
        if precision in found:
            already = f"{precision} is choice {found[precision]} already; keep one of the two"
            raise InputError(f"layer {layer.name}: choice {index}: {already}")
        found[precision] = index
    return tuple(found)


@cache
def _precision(
    weight_bits: int | None, activation_bits: int | None, weight_format: str | None, activation_format: str | None
) -> Precision:
    """One of the few precisions that a document of many layers repeats."""
    fields = {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "weight_format": weight_format,
        "activation_format": activation_format,
    }
    return Precision.from_doc({key: value for key, value in fields.items() if value is not None})


def tensor_formats(tensor: TensorDoc) -> tuple[Format, ...]:
    """The formats that the rows and columns of a tensor's costs stand for.

    Raises:
        InputError: not exactly one of the two keys, an unknown format, or one that appears twice.
    """
    where = f"tensor {tensor_name(tensor)}"
    bits, names = tensor.activation_bits, tensor.activation_formats
    if (bits is None) == (names is None):
        raise InputError(f"{where}: give either activation_bits or activation_formats")
    try:
        formats = tuple(Format.parse(name) for name in names or [f"int{count}" for count in bits or ()])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    twice = [str(name) for name, count in Counter(formats).items() if count > 1]
    if twice:
        raise InputError(f"{where}: {twice[0]} is listed twice; name each activation format once")
    return formats


def tensor_name(tensor: TensorDoc) -> str:
    """How messages and reports call a tensor."""
    return f"{tensor.source or 'input'} -> {', '.join(tensor.targets)}"


def check_shape(where: str, costs: Sequence[Sequence[float]], rows: int, columns: int, meaning: str) -> None:
    """Raise unless `costs` is `rows` by `columns`.

    Raises:
        InputError: says what the rows and columns are.
    """
    if len(costs) == rows and all(len(row) == columns for row in costs):
        return
    widths = sorted({len(row) for row in costs})
    shown = f"{len(costs)} x {widths[0]}" if len(widths) == 1 else f"{len(costs)} rows of {widths or 'no'} columns"
    raise InputError(f"{where}: costs is {shown}, expected {rows} x {columns} ({meaning})")


def _references(doc: ProblemDoc) -> Iterator[tuple[str, str]]:
    """Each place that names a layer, and the name."""
    for key in ("ties", "activation_ties"):
        for index, names in enumerate(getattr(doc, key)):
            yield from ((f"{key}.{index}", name) for name in names)
    for index, edge in enumerate(doc.edges):
        yield from ((f"edges.{index}", name) for name in (edge.source, edge.target))
    for index, tensor in enumerate(doc.tensors):
        yield from ((f"tensors.{index}", name) for name in (tensor.source, *tensor.targets) if name is not None)
    for index, interaction in enumerate(doc.interactions):
        yield from ((f"interactions.{index}", name) for name in interaction.between)
    for index, step in enumerate(doc.peak):
        yield from ((f"peak.{index} ({step.step})", name) for name in step.live)


def check_names(doc: ProblemDoc) -> None:
    """Raise unless layer names are unique and every reference names a layer.

    Raises:
        InputError: names the first duplicate or unknown layer.
    """
    counts = Counter(layer.name for layer in doc.layers)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise InputError(f"layers: {twice[0]!r} stands {counts[twice[0]]} times; give every layer its own name")
    for where, name in _references(doc):
        if name not in counts:
            known = ", ".join([*counts][:5]) + (", ..." if len(counts) > 5 else "")
            raise InputError(f"{where}: unknown layer {name!r}; the layers are {known}")


def check_metrics(doc: ProblemDoc) -> tuple[str, ...]:
    """All metrics: of choices, of edges and tensors alone, peak memory if steps are given, and sensitivity.

    Raises:
        InputError: choices that price different metrics, or a metric where it cannot stand.
    """
    first = doc.layers[0].choices[0].costs
    for layer in doc.layers:
        for index, choice in enumerate(layer.choices):
            if choice.costs.keys() == first.keys():
                continue
            odd = sorted(choice.costs.keys() ^ first.keys())[0]
            verb = "prices" if odd in choice.costs else "does not price"
            raise InputError(
                f"layer {layer.name}: choice {index} {verb} {odd}, unlike choice 0 of {doc.layers[0].name}; "
                "every choice prices the same metrics (write 0 for what costs nothing)"
            )
    priced = dict.fromkeys([*first, *(edge.metric for edge in doc.edges), *(tensor.metric for tensor in doc.tensors)])
    if PEAK in priced:
        raise InputError(f"{PEAK} is no sum over layers: leave it out of costs and describe the steps under `peak`")
    if SENSITIVITY in priced:
        raise InputError(
            f"{SENSITIVITY} is no cost: it stands beside a choice's costs, and pairs of layers under `interactions`"
        )
    return (*priced, *([PEAK] if doc.peak else []), SENSITIVITY)


def check_bounds(doc: ProblemDoc, metrics: Sequence[str]) -> None:
    """Raise unless objective, offsets and budgets name known metrics and the budgets can be met by something.

    Raises:
        InputError: names the key, the value and the known metrics.
    """
    known = f"the problem prices {', '.join(metrics)}"
    if doc.objective not in metrics:
        raise InputError(f"objective: unknown metric {doc.objective!r}; {known}")
    for name, value in doc.offsets.items():
        if name not in metrics or name == PEAK:
            raise InputError(f"offsets: no additive metric {name!r}; {known}")
        if value < 0 and name != SENSITIVITY:
            raise InputError(f"offsets.{name}: {value:g} is negative; costs are 0 or more")
    for name, value in doc.budgets.items():
        if name not in metrics:
            raise InputError(f"budgets: unknown metric {name!r}; {known}")
        if value <= 0 and not (name == SENSITIVITY and _has_gains(doc)):
            raise InputError(f"budgets.{name}: {value:g} leaves room for nothing; give a bound above 0")


def _has_gains(doc: ProblemDoc) -> bool:
    """Whether some sensitivity is negative, so that a bound of zero or below makes sense."""
    alone = any(choice.sensitivity < 0 for layer in doc.layers for choice in layer.choices)
    return alone or any(value < 0 for pair in doc.interactions for row in pair.costs for value in row)


def to_doc(doc: ProblemDoc) -> dict[str, Any]:
    """Plain JSON values, optional keys that say nothing left out."""
    raw = doc.model_dump(by_alias=True, exclude_none=True)
    for tensor, entry in zip(doc.tensors, raw["tensors"], strict=True):
        entry["from"] = tensor.source
    optional = ("ties", "activation_ties", "edges", "tensors", "interactions", "peak", "offsets")
    return {key: value for key, value in raw.items() if value or key not in optional}
