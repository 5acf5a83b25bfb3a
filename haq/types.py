"""The plain values that every part of `haq` shares: frozen, free of torch, JSON both ways."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

METRICS = ("latency_ms", "energy_mj", "size_bytes", "peak_activation_bytes", "bops")
"""The cost metrics, with their units in their names, in the order in which they are shown."""

_FLOAT_BITS = {"fp16": 16, "bf16": 16, "fp32": 32}
_LOW_BITS = {"ternary": 2, "binary": 1}
_INT = re.compile(r"int([1-9]|[12][0-9]|3[0-2])")


@dataclass(frozen=True, slots=True, order=True)
class Format:
    """A number format. Build it with `Format.parse`, which knows every name.

    Attributes:
        bits: storage bits per value (ternary: 2, binary: 1).
        name: `int1` ... `int32`, `ternary`, `binary`, `fp16`, `bf16` or `fp32`.
    """

    bits: int
    name: str

    @classmethod
    def parse(cls, name: str) -> Format:
        """The format called `name`.

        Raises:
            ValueError: unknown name; the message lists the known ones.
        """
        if name in _FLOAT_BITS:
            return cls(_FLOAT_BITS[name], name)
        if name in _LOW_BITS:
            return cls(_LOW_BITS[name], name)
        match = _INT.fullmatch(name)
        if match is None:
            raise ValueError(
                f"unknown number format {name!r}; known: int1 to int32, {', '.join([*_LOW_BITS, *_FLOAT_BITS])}"
            )
        return cls(int(match[1]), name)

    @classmethod
    def integer(cls, bits: int) -> Format:
        """The plain integer format of `bits` bits."""
        return cls.parse(f"int{bits}")

    @property
    def is_float(self) -> bool:
        return self.name in _FLOAT_BITS

    @property
    def is_integer(self) -> bool:
        """Whether the name says no more than the bits: a plain integer, written as `4` in `w4a8`."""
        return self.name == f"int{self.bits}"

    @property
    def short(self) -> str:
        return str(self.bits) if self.is_integer else self.name

    def __str__(self) -> str:
        return self.name


_SHORT = r"(\d+|ternary|binary|fp16|bf16|fp32)"
_PRECISION = re.compile(f"w{_SHORT}a{_SHORT}")
_PRECISION_KEYS = frozenset({"weight_bits", "activation_bits", "weight_format", "activation_format"})


@dataclass(frozen=True, slots=True, order=True)
class Precision:
    """The formats of one layer: of its weights and of the activations that it reads. Prints as `w4a8`."""

    weight: Format
    activation: Format

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read `w4a8`, `wternarya8`, `wfp16afp16`, ...

        Raises:
            ValueError: not of that form.
        """
        match = _PRECISION.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!r} is no precision; write weight and activation formats as in w4a8, wternarya8, wfp16afp16"
            )
        weight, activation = (Format.parse(f"int{part}" if part.isdigit() else part) for part in match.groups())
        return cls(weight, activation)

    @classmethod
    def from_doc(cls, doc: Mapping[str, Any]) -> Precision:
        """From `weight_bits`, `activation_bits` and, where not plain integers, `weight_format`, `activation_format`."""

        def read(kind: str) -> Format:
            bits, name = doc.get(f"{kind}_bits"), doc.get(f"{kind}_format")
            if name is None:
                if not isinstance(bits, int) or isinstance(bits, bool):
                    raise ValueError(f"{kind}_bits must be a whole number of bits, got {bits!r}")
                return Format.integer(bits)
            if not isinstance(name, str):
                raise ValueError(f"{kind}_format must be the name of a number format, got {name!r}")
            result = Format.parse(name)
            if bits is not None and bits != result.bits:
                raise ValueError(f"{kind}_bits is {bits!r} but {kind}_format {name!r} has {result.bits} bits")
            return result

        return cls(read("weight"), read("activation"))

    def to_doc(self) -> dict[str, Any]:
        doc: dict[str, Any] = {"weight_bits": self.weight.bits, "activation_bits": self.activation.bits}
        if not self.weight.is_integer:
            doc["weight_format"] = self.weight.name
        if not self.activation.is_integer:
            doc["activation_format"] = self.activation.name
        return doc

    def __str__(self) -> str:
        return f"w{self.weight.short}a{self.activation.short}"


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One quantizable layer. Counts are for one sample and sum over all calls of the module.

    Attributes:
        name: qualified module name.
        kind: `conv1d`, `conv2d`, `conv_transpose2d` or `linear`.
        weight_shape: as torch stores it.
        macs: multiply-accumulates.
        params: weight elements (bias apart).
        bias_elements: elements of the bias, 0 without one.
        input_shape: of one sample, batch dimension left out, at the first call.
        output_shape: likewise.
        input_elements: elements read.
        output_elements: elements written.
        groups: convolution groups (1 for linear).
        stride: of the convolution, per dimension (empty for linear).
        calls: how many times one forward pass calls the module.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    macs: int
    params: int
    bias_elements: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    input_elements: int
    output_elements: int
    groups: int = 1
    stride: tuple[int, ...] = ()
    calls: int = 1

    @property
    def in_channels(self) -> int:
        if self.kind == "conv_transpose2d":
            return self.weight_shape[0]
        return self.weight_shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        if self.kind == "conv_transpose2d":
            return self.weight_shape[1] * self.groups
        return self.weight_shape[0]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial kernel size, empty for linear layers."""
        return self.weight_shape[2:]

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def output_positions(self) -> int:
        """Output elements per output channel: pixels of a convolution, rows of a linear layer (over all calls)."""
        return self.output_elements // self.out_channels


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value that layers read. Its format is the activation format of the layer that wrote it.

    Attributes:
        name: unique; the graph node's.
        producer: the layer that wrote it, `None` for an input of the network. Activations, pools and reshapes on the
            way are looked through; the result of an add or concat counts as written by the operand computed last,
            into whose kernel a runtime fuses it.
        consumers: the layers that read it, in execution order.
        elements: per sample.
    """

    name: str
    producer: str | None
    consumers: tuple[str, ...]
    elements: int


@dataclass(frozen=True, slots=True)
class Join:
    """An add, concat, product or the like of tensors that several layers wrote.

    Attributes:
        name: the graph node's.
        kind: `add`, `concat`, `mul`, `matmul` or `other`.
        owner: the layer whose output format the result has: the operand computed last.
        others: `(layer or None for a network input, elements per sample)` of each other operand.
        elements: of the result, per sample.
    """

    name: str
    kind: str
    owner: str | None
    others: tuple[tuple[str | None, int], ...]
    elements: int


@dataclass(frozen=True, slots=True)
class Step:
    """What is in activation memory while one operation runs.

    Attributes:
        name: the layer or graph node that runs.
        live: `(layer that wrote the tensor or None for a network input, elements per sample)`, inputs and outputs of
            this operation and whatever a later one still needs.
    """

    name: str
    live: tuple[tuple[str | None, int], ...]


@dataclass(frozen=True)
class Network:
    """A traced model as plain data: what cost models and search spaces need to know, and nothing else."""

    layers: tuple[LayerSpec, ...]
    tensors: tuple[Tensor, ...]
    joins: tuple[Join, ...] = ()
    steps: tuple[Step, ...] = ()

    def __getitem__(self, name: str) -> LayerSpec:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r}; the network has {', '.join(layer.name for layer in self.layers)}")

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    @property
    def params(self) -> int:
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    def shared_reads(self) -> tuple[tuple[str, ...], ...]:
        """Groups of two or more layers that read one tensor."""
        return tuple(tensor.consumers for tensor in self.tensors if len(set(tensor.consumers)) > 1)

    def joined_writes(self) -> tuple[tuple[str, ...], ...]:
        """For each add or concat, the two or more layers that wrote its operands."""
        groups = []
        for join in self.joins:
            if join.kind not in ("add", "concat"):
                continue
            names = dict.fromkeys(
                name for name in (join.owner, *(other for other, _ in join.others)) if name is not None
            )
            if len(names) > 1:
                groups.append(tuple(names))
        return tuple(groups)

    def to_doc(self) -> dict[str, Any]:
        return {"schema_version": 1, **asdict(self)}

    @classmethod
    def from_doc(cls, doc: Mapping[str, Any]) -> Network:
        def pairs(rows: Iterable[Any]) -> tuple[tuple[str | None, int], ...]:
            return tuple((row[0], row[1]) for row in rows)

        shapes = ("weight_shape", "input_shape", "output_shape", "stride")
        return cls(
            tuple(LayerSpec(**{**row, **{key: tuple(row[key]) for key in shapes}}) for row in doc["layers"]),
            tuple(Tensor(**{**row, "consumers": tuple(row["consumers"])}) for row in doc["tensors"]),
            tuple(Join(**{**row, "others": pairs(row["others"])}) for row in doc["joins"]),
            tuple(Step(row["name"], pairs(row["live"])) for row in doc["steps"]),
        )


@dataclass(frozen=True)
class Policy(Mapping[str, Precision]):
    """A bit-width policy: layer name -> precision, in network order. Equal and hashed by content."""

    precisions: Mapping[str, Precision]

    def __post_init__(self) -> None:
        object.__setattr__(self, "precisions", dict(self.precisions))

    def __getitem__(self, name: str) -> Precision:
        return self.precisions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.precisions)

    def __len__(self) -> int:
        return len(self.precisions)

    def __hash__(self) -> int:
        return hash(self.key)

    @classmethod
    def uniform(cls, layers: Iterable[str], precision: Precision) -> Policy:
        return cls(dict.fromkeys(layers, precision))

    @property
    def key(self) -> str:
        """A stable hash of the content, equal across processes and machines; the order of layers does not matter."""
        text = json.dumps({name: str(precision) for name, precision in self.precisions.items()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_doc(self) -> dict[str, dict[str, Any]]:
        """`{layer: {"weight_bits": 4, "activation_bits": 8}, ...}`."""
        return {name: precision.to_doc() for name, precision in self.precisions.items()}

    @classmethod
    def from_doc(cls, doc: Mapping[str, Any]) -> Policy:
        """Read what `to_doc` wrote.

        Raises:
            ValueError: names the layer whose entry is not a precision.
        """
        precisions = {}
        for name, entry in doc.items():
            if not isinstance(entry, Mapping):
                raise ValueError(
                    f"layer {name!r}: expected an object with weight_bits and activation_bits, got {entry!r}"
                )
            try:
                if unknown := sorted(set(entry) - _PRECISION_KEYS):
                    raise ValueError(f"unknown key {unknown[0]!r}; known: {', '.join(sorted(_PRECISION_KEYS))}")
                precisions[name] = Precision.from_doc(entry)
            except ValueError as error:
                raise ValueError(f"layer {name!r}: {error}") from error
        return cls(precisions)

    def check_layers(self, layers: Iterable[str]) -> None:
        """Raise unless this policy names exactly `layers`.

        Raises:
            ValueError: lists the missing and the unknown layers.
        """
        expected = set(layers)
        missing, unknown = sorted(expected - set(self)), sorted(set(self) - expected)
        if missing or unknown:
            parts = [
                f"{word} {', '.join(names)}" for word, names in (("missing", missing), ("unknown", unknown)) if names
            ]
            raise ValueError(f"the policy is for another model: {'; '.join(parts)}")


@dataclass(frozen=True, slots=True)
class Cost:
    """What running a model, a layer or a switch costs. A field that a cost model does not model stays 0."""

    latency_ms: float = 0.0
    energy_mj: float = 0.0
    size_bytes: float = 0.0
    peak_activation_bytes: float = 0.0
    bops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def to_doc(self, metrics: Iterable[str] = METRICS) -> dict[str, float]:
        return {metric: getattr(self, metric) for metric in METRICS if metric in set(metrics)}


@dataclass(frozen=True, slots=True)
class Measurement:
    """What an evaluator found a policy to be worth.

    Attributes:
        score: larger is better (accuracy in per cent for classification); NaN when the evaluation failed.
        fidelity: `ptq`, `bn`, `qat`, ...
        seconds: wall time of the evaluation.
        details: further figures (`loss`, ...).
        error: why it failed, empty otherwise.
    """

    score: float
    fidelity: str
    seconds: float = 0.0
    details: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error and math.isfinite(self.score)

    def to_doc(self) -> dict[str, Any]:
        doc: dict[str, Any] = {"score": self.score if math.isfinite(self.score) else None, "fidelity": self.fidelity}
        doc |= {"seconds": self.seconds, "details": dict(self.details)}
        return doc | ({"error": self.error} if self.error else {})

    @classmethod
    def from_doc(cls, doc: Mapping[str, Any]) -> Measurement:
        score = math.nan if doc["score"] is None else float(doc["score"])
        return cls(score, doc["fidelity"], doc.get("seconds", 0.0), dict(doc.get("details", {})), doc.get("error", ""))


@dataclass(frozen=True, slots=True)
class Trial:
    """One policy of a search, what the tables predict it costs, and what it measured.

    Attributes:
        number: 0, 1, 2, ... in the order in which the search proposed.
        source: the strategy that proposed it, or `uniform` / `greedy` for the baselines.
        costs: metric -> predicted value, `sensitivity` among them.
    """

    number: int
    source: str
    policy: Policy
    costs: Mapping[str, float]
    measurement: Measurement

    def to_doc(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "source": self.source,
            "policy": self.policy.to_doc(),
            "costs": dict(self.costs),
            "measurement": self.measurement.to_doc(),
        }

    @classmethod
    def from_doc(cls, doc: Mapping[str, Any]) -> Trial:
        return cls(
            doc["number"],
            doc["source"],
            Policy.from_doc(doc["policy"]),
            dict(doc["costs"]),
            Measurement.from_doc(doc["measurement"]),
        )
