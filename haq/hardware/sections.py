"""The sections of a hardware profile: rows, rates, memory, provenance. Units stand in the names of the keys."""

from __future__ import annotations

from datetime import date
from fnmatch import fnmatchcase
from itertools import product
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from haq.edges.validation import Section
from haq.values.formats import Format, Precision
from haq.values.kinds import KINDS
from haq.values.network import LayerSpec

Op = Literal["conv", "stem", "pointwise", "depthwise", "linear"]

OP_CLASSES: dict[Op, tuple[Op, ...]] = {
    "conv": ("conv",),
    "stem": ("stem", "conv"),
    "pointwise": ("pointwise", "conv"),
    "depthwise": ("depthwise",),
    "linear": ("linear",),
}
_STEM_CHANNELS = 4

Positive = Annotated[float, Field(gt=0, strict=True)]
NonNegative = Annotated[float, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(gt=0, le=1, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
FormatName = Annotated[str, AfterValidator(lambda name: Format.parse(name).name)]
PrecisionName = Annotated[str, AfterValidator(lambda name: str(Precision.parse(name)))]
Text = Annotated[str, Field(min_length=1)]


def operation(layer: LayerSpec) -> Op:
    """The most specific operation class of a layer.

    `stem` is a dense convolution that reads at most 4 channels, `pointwise` one with a kernel of one element; both are
    also `conv`. `depthwise` has one group per input channel; other grouped and transposed convolutions are `conv`.
    """
    if KINDS[layer.kind].is_linear:
        return "linear"
    if layer.is_depthwise:
        return "depthwise"
    if layer.groups == 1 and layer.in_channels <= _STEM_CHANNELS:
        return "stem"
    if layer.groups == 1 and all(size == 1 for size in layer.kernel):
        return "pointwise"
    return "conv"


class KindSection(Section):
    """The section of a profile that one kind of cost model reads; its file is `kinds/<kind>.py`."""

    @property
    def files(self) -> tuple[str, ...]:
        """Files beside the profile that belong to its content, by name."""
        return ()


class Rows(Section):
    """Which layers and precisions a row is for; what is left out matches everything. The first row that fits counts."""

    weights: tuple[FormatName, ...] = ()
    activations: tuple[FormatName, ...] = ()
    pairs: tuple[PrecisionName, ...] = ()
    """Precisions such as `w4a8`, in place of `weights` and `activations`."""
    ops: tuple[Op, ...] = ()

    @model_validator(mode="after")
    def _one_notation(self) -> Rows:
        if self.pairs and (self.weights or self.activations):
            raise ValueError("give either `pairs` or `weights` and `activations`")
        return self

    def fits(self, op: Op, precision: Precision) -> bool:
        return (
            (not self.ops or any(name in self.ops for name in OP_CLASSES[op]))
            and (not self.pairs or str(precision) in self.pairs)
            and (not self.weights or precision.weight.name in self.weights)
            and (not self.activations or precision.activation.name in self.activations)
        )


class FormatRow(Rows):
    """Precisions that the device executes: `pairs`, or the product of `weights` and `activations`."""

    accelerated: bool = True
    """False where the precision is legal but gains no speed."""

    @model_validator(mode="after")
    def _not_empty(self) -> FormatRow:
        if not self.pairs and not (self.weights and self.activations):
            raise ValueError("give `pairs`, or both `weights` and `activations`")
        self.precisions()  # raises where activations are in a format of weights
        return self

    def precisions(self) -> tuple[Precision, ...]:
        if self.pairs:
            return tuple(Precision.parse(name) for name in self.pairs)
        return tuple(Precision(Format.parse(w), Format.parse(a)) for w, a in product(self.weights, self.activations))


class AlignmentRow(Rows):
    """Channels are padded to a multiple of the unit's granularity; the padding is computed like real channels."""

    in_channels: Count = 1
    out_channels: Count = 1


class Device(Section):
    """What the figures are of."""

    vendor: Text
    chip: Text
    runtime: str = ""
    threads: Count | None = None
    frequency_mhz: Positive | None = None


class Provenance(Section):
    """Where the numbers come from; at least one of measured, published and derived."""

    source: Text
    date: date
    measured: str = ""
    published: str = ""
    derived: str = ""
    assumed: str = ""
    """Figures without a source, `from memory, unverified` where that is so."""
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _says_what(self) -> Provenance:
        if not (self.measured or self.published or self.derived):
            raise ValueError("say in at least one of `measured`, `published`, `derived` which figures those are")
        return self


class Measured(Section):
    """The machine and the network that `haq profile` measured, and how well its model of them holds."""

    cpu: Text
    package: str = ""
    """The Python package that executes; empty where it is none of this machine."""
    package_version: str = ""
    threads: Count
    accelerator: str = ""
    """The GPU that executes, if one does."""
    command: str = ""
    """The user's script that executes, if one does."""
    capability: str = ""
    """What the processor's integer kernels can use: `haq.hardware.host.cpu_capability`."""
    exact: bool = False
    """Whether what was timed computes what is searched on every processor: no kernel saturates."""
    low: PrecisionName = "w8a8"
    """The precision that was measured against float32."""
    network: Text
    """`haq.hardware.network_digest` of the model: times are of its layers within its graph."""
    noise_floor_percent: NonNegative
    """Mean difference between the minima of two halves of the repeats."""
    error_percent: NonNegative
    """Mean error of the fit, each calibration policy left out in turn."""
    guard_percent: NonNegative
    """Ninetieth percentile of that error."""
    policies: tuple[str, ...] = ()
    """Keys of the policies that it was fitted on."""


class ProfileQuantization(Section):
    """What the device's runtime expects; left out: the experiment's choice. See `config.QuantizationConfig`."""

    weight_granularity: Literal["tensor", "channel", "group"] | None = None
    weight_scheme: Literal["symmetric", "affine"] | None = None
    activation_scheme: Literal["symmetric", "affine"] | None = None
    weight_calibration: Literal["minmax", "percentile", "mse", "balanced", "entropy", "octav"] | None = None
    activation_calibration: Literal["minmax", "percentile", "mse", "entropy", "octav", "ema"] | None = None


class Ties(Section):
    """Which layers must agree on their activation format."""

    shared_input: bool = False
    """Layers that read one tensor."""
    join_inputs: bool = False
    """Layers that wrote the inputs of one add, concat or product."""


class Packing(Section):
    """How values of b bits lie in memory: floor(word / b) per word; without `word_bits` without gaps."""

    word_bits: Count | None = None
    pad_rows: bool = False
    """Whether the weights of each output channel start on a new word (without `word_bits`: byte)."""


class Memory(Section):
    """Off-chip and on-chip memory. Energies that are part of the energy per MAC are left out."""

    bandwidth_gb_per_s: Positive | None = None
    weight_bandwidth_gb_per_s: Positive | None = None
    """Of a separate weight memory, e.g. flash; without it weights and activations share the bandwidth."""
    buffer_bytes: Annotated[int, Field(ge=0, strict=True)] = 0
    """Activations up to this size stay on the chip between layers."""
    energy_pj_per_byte: NonNegative = 0.0
    buffer_energy_pj_per_byte: NonNegative = 0.0
    flash_bytes: Count | None = None
    ram_bytes: Count | None = None


class Overhead(Section):
    """Time that is spent per layer (and call) whatever it computes."""

    per_layer_us: NonNegative = 0.0


class ConversionRow(Section):
    """Cost of turning a tensor from one format into another; `from` and `to` may be patterns such as `int*` or `*`."""

    model_config = ConfigDict(populate_by_name=True)

    written: Annotated[str, Field(min_length=1, alias="from")]
    wanted: Annotated[str, Field(min_length=1, alias="to")]
    fixed_us: NonNegative
    per_element_ns: NonNegative | None = None
    """Left out: the time to read the one and to write the other format at the memory bandwidth."""
    energy_pj_per_element: NonNegative | None = None
    """Left out: the energy to read the one and to write the other format in off-chip memory."""

    def fits(self, written: Format, wanted: Format) -> bool:
        return fnmatchcase(written.name, self.written) and fnmatchcase(wanted.name, self.wanted)
