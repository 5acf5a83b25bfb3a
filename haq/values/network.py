"""What a model is to a search: layers, tensors between them, and the steps in which they are live."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from haq.values.kinds import KINDS


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One quantizable layer. Counts are for one sample and sum over all calls of the module.

    Attributes:
        name: qualified module name.
        kind: a name in `haq.values.kinds.KINDS`.
        weight_shape: as torch stores it.
        macs: multiply-accumulates.
        params: weight elements (bias apart); 0 where the weight is that of a layer that counts it.
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
        if KINDS[self.kind].transposed:
            return self.weight_shape[0]
        return self.weight_shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        if KINDS[self.kind].transposed:
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
        """Output elements per output channel: pixels of a convolution, rows of a linear layer or table (all calls)."""
        return self.output_elements // (self.weight_shape[1] if KINDS[self.kind].gathers else self.out_channels)


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
class FloatPart:
    """What one module holds and computes that is not quantized: biases, norms, embeddings, products of activations, ...

    Attributes:
        name: qualified name of the module, empty for the model itself.
        kind: its class; `bias` for what a quantized layer adds.
        params: elements of its parameters and buffers.
        bytes: that they take in the deployed model.
        macs: multiply-accumulates per sample.
        input_elements: read by its operators, per sample; 0 where it only holds what a layer adds.
        output_elements: written by them, per sample.
        counted: `False` where torch cannot say how many multiply-accumulates an operator takes.
    """

    name: str
    kind: str
    params: int = 0
    bytes: int = 0
    macs: int = 0
    input_elements: int = 0
    output_elements: int = 0
    counted: bool = True

    @property
    def label(self) -> str:
        """For people: its name and kind."""
        return f"{self.name} ({self.kind})" if self.name else self.kind

    @property
    def works(self) -> bool:
        """Whether it computes anything, rather than only holding numbers."""
        return bool(self.macs or self.output_elements or not self.counted)

    def __add__(self, other: FloatPart) -> FloatPart:
        return FloatPart(
            self.name,
            self.kind,
            self.params + other.params,
            self.bytes + other.bytes,
            self.macs + other.macs,
            self.input_elements + other.input_elements,
            self.output_elements + other.output_elements,
            self.counted and other.counted,
        )


FLOAT_WRITER = "(float)"
"""Stands in a `Step` for a tensor computed in float32, whatever the formats of the layers; no module has this name."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is in activation memory while one operation runs.

    Attributes:
        name: the layer or graph node that runs.
        live: `(layer that wrote the tensor or None for a network input, elements per sample)`, inputs and outputs of
            this operation and whatever a later one still needs; `FLOAT_WRITER` for what was computed in float.
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
    float_parts: tuple[FloatPart, ...] = ()
    shared_weights: tuple[tuple[str, ...], ...] = ()
    """Groups of layers of unlike kinds that hold one weight (an embedding and the output layer): they must agree."""

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
            tuple(FloatPart(**row) for row in doc.get("float_parts", ())),
            tuple(tuple(group) for group in doc.get("shared_weights", ())),
        )
