"""What all cost models that read a hardware profile share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Generic, Literal, TypeVar, cast

from haq.hardware.float_work import FLOAT32, FLOAT_BITS, as_layer
from haq.hardware.packing import (
    Granularity,
    activation_scale_bytes,
    aligned_macs,
    code_bytes,
    misfit,
    packed_bytes,
    parameter_bytes,
    weight_bytes,
)
from haq.hardware.profile import HardwareProfile
from haq.hardware.sections import OP_CLASSES, AlignmentRow, ConversionRow, KindSection, operation
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.kinds import KINDS
from haq.values.network import FloatPart, LayerSpec, Tensor
from haq.values.trial import Cost

MS_PER_US = 1e-3
MS_PER_NS = 1e-6
MS_PER_S = 1e3
MJ_PER_PJ = 1e-9


SectionT = TypeVar("SectionT", bound=KindSection)


class ProfileCostModel(Generic[SectionT]):
    """A cost model over a `HardwareProfile`: formats, sizes, packing and switches.

    By itself it prices a device of which only the capabilities are known; the subclasses, one per kind of profile, add
    the time and energy of a layer. A kind is one file in `kinds/`: its section, this class, and its own checks.

    Args:
        profile: the device.
        weight_granularity: how many scales the weights have.
        group_size: weights per group where the granularity is `group`.
        weight_scheme: `affine` weights store zero points as well.
    """

    section: ClassVar[type[KindSection] | None] = None
    """The schema of the profile's section that has the name of the kind; `None`: the kind reads none."""

    @classmethod
    def section_of(cls, profile: HardwareProfile) -> SectionT:
        """The section of this kind in `profile`, which was checked when it was read."""
        return cast(SectionT, profile.section)

    @classmethod
    def check_profile(cls, profile: HardwareProfile) -> None:
        """What this kind needs of the other sections.

        Raises:
            ValueError: names the key and the remedy.
        """

    @classmethod
    def knows_energy(cls, profile: HardwareProfile) -> bool:
        """Whether the profile's figures give energies for every precision."""
        return False

    def __init__(
        self,
        profile: HardwareProfile,
        *,
        weight_granularity: Granularity = "channel",
        group_size: int = 64,
        weight_scheme: Literal["symmetric", "affine"] = "symmetric",
    ) -> None:
        self.profile = profile
        self._granularity = weight_granularity
        self._group_size = group_size
        self._scheme = weight_scheme
        self._supported = {op: profile.precisions(op) for op in OP_CLASSES}
        self._accelerated = {op: profile.precisions(op, accelerated=True) for op in OP_CLASSES}

    def check(self) -> None:
        """Read what lies beside the profile, so that its errors come early.

        Raises:
            InputError: a table is missing or malformed.
        """

    @property
    def metrics(self) -> frozenset[str]:
        return self.profile.metrics

    def _latency_ms(self, layer: LayerSpec, precision: Precision) -> float:
        raise InputError(f"latency_ms: hardware profile {self.name!r} states no rates")

    def _energy_mj(self, layer: LayerSpec, precision: Precision) -> float:
        raise InputError(f"energy_mj: hardware profile {self.name!r} states no energies")

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def batch(self) -> int:
        return self.profile.batch

    @property
    def input_format(self) -> Format | None:
        return Format.parse(self.profile.input_format) if self.profile.input_format else None

    @property
    def shared_input(self) -> bool:
        return self.profile.ties.shared_input

    @property
    def join_inputs(self) -> bool:
        return self.profile.ties.join_inputs

    def supported(self, layer: LayerSpec) -> tuple[Precision, ...]:
        return tuple(choice for choice in self._supported[operation(layer)] if not misfit(layer, choice.weight))

    def accelerated(self, layer: LayerSpec, precision: Precision) -> bool:
        return precision in self._accelerated[operation(layer)]

    def layer_cost(self, layer: LayerSpec, precision: Precision) -> Cost:
        reason = misfit(layer, precision.weight)
        if reason is not None:
            raise InputError(f"layer {layer.name!r} is too small for {precision.weight}: {reason}; choose fewer bits")
        if precision not in self.supported(layer):
            known = ", ".join(str(choice) for choice in self.supported(layer)) or "nothing"
            raise InputError(
                f"layer {layer.name!r}: {self.name} does not run {operation(layer)} layers in {precision}; "
                f"it supports {known}"
            )
        return Cost(
            latency_ms=self._latency_ms(layer, precision) if "latency_ms" in self.metrics else 0.0,
            energy_mj=self._energy_mj(layer, precision) if "energy_mj" in self.metrics else 0.0,
            size_bytes=self.weight_bytes(layer, precision.weight) + self._parameter_bytes(layer, precision.weight),
            bops=float(self.batch * layer.macs * precision.weight.bits * precision.activation.bits),
        )

    def float_cost(self, part: FloatPart) -> tuple[Cost, frozenset[str]]:
        """Bytes and bit operations are known of any part; time and energy are those of a float32 linear layer of as
        many multiply-accumulates that moves as many elements, where the device runs one.

        Times of a profile measured on this network hold all of it already.
        """
        cost = {"size_bytes": float(part.bytes), "bops": float(self.batch * part.macs * FLOAT_BITS**2)}
        missing = set() if part.counted else {"bops"}
        for metric, price in (("latency_ms", self._latency_ms), ("energy_mj", self._energy_mj)):
            if metric not in self.metrics or not part.works:
                continue
            if self.profile.measured is not None and metric == "latency_ms":
                continue
            try:
                if not part.counted or FLOAT32 not in self._supported["linear"]:
                    raise InputError(f"{self.name} states no figures for float32")
                cost[metric] = price(as_layer(part), FLOAT32)
            except InputError:
                missing.add(metric)
        return Cost(**cost), frozenset(missing & self.metrics)

    def switch_cost(self, tensor: Tensor, written: Format, wanted: Format) -> Cost:
        return self._conversion("switch", self.profile.switch, tensor.elements, written, wanted)

    def join_cost(self, elements: int, written_by_owner: Format, written_by_other: Format) -> Cost:
        rows = self.profile.join or self.profile.switch
        return self._conversion("join", rows, elements, written_by_other, written_by_owner)

    def storage_bytes(self, elements: int, fmt: Format) -> int:
        count = elements * self.batch
        values = packed_bytes(count, fmt.bits, word_bits=self.profile.packing.word_bits)
        return values + activation_scale_bytes(fmt, count)

    def weight_bytes(self, layer: LayerSpec, fmt: Format) -> int:
        """Packed weights alone, without scales and zero points."""
        packing = self.profile.packing
        return weight_bytes(layer, fmt, word_bits=packing.word_bits, pad_rows=packing.pad_rows)

    def read_weight_bytes(self, layer: LayerSpec, fmt: Format) -> int:
        """What is read of a layer's weights in one call: with the scales, where the format has its own."""
        if KINDS[layer.kind].gathers:  # only the rows that are looked up
            rows = self.batch * layer.output_positions // layer.calls
            scales = fmt.parameter_bytes(rows, layer.weight_shape[1]) or 0
            return scales + code_bytes(fmt, rows, layer.weight_shape[1], word_bits=self.profile.packing.word_bits)
        scales = self._parameter_bytes(layer, fmt) if fmt.family.is_ordered else 0
        return self.weight_bytes(layer, fmt) + scales

    def aligned_macs(self, layer: LayerSpec, precision: Precision) -> float:
        """Multiply-accumulates of the whole batch with the channels padded to the units' granularity."""
        op = operation(layer)
        row = next((row for row in self.profile.alignment if row.fits(op, precision)), AlignmentRow())
        return self.batch * aligned_macs(layer, in_channels=row.in_channels, out_channels=row.out_channels)

    def moved_bytes(self, layer: LayerSpec, precision: Precision) -> tuple[float, float]:
        """Bytes that a layer reads and writes: of weights (once per call) and of activations.

        The output is written in the layer's own activation format; a reader that wants another pays a switch.
        """
        elements = layer.input_elements + layer.output_elements
        return (
            float(layer.calls * self.read_weight_bytes(layer, precision.weight)),
            float(self.storage_bytes(elements, precision.activation)),
        )

    def _parameter_bytes(self, layer: LayerSpec, fmt: Format) -> int:
        return parameter_bytes(
            layer, fmt, granularity=self._granularity, group_size=self._group_size, scheme=self._scheme
        )

    def _conversion(
        self, what: str, rows: Sequence[ConversionRow], elements: int, written: Format, wanted: Format
    ) -> Cost:
        if written == wanted or not self.metrics & {"latency_ms", "energy_mj"}:
            return Cost()
        row = next((row for row in rows if row.fits(written, wanted)), None)
        if row is None:
            raise InputError(f"{self.name}: no {what} row fits {written} -> {wanted}; add one to the profile")
        count, memory = elements * self.batch, self.profile.memory
        moved = self.storage_bytes(elements, written) + self.storage_bytes(elements, wanted)
        if row.per_element_ns is not None:
            variable = count * row.per_element_ns * MS_PER_NS
        else:
            assert memory.bandwidth_gb_per_s is not None  # the profile's validator saw to it
            variable = moved / memory.bandwidth_gb_per_s * MS_PER_NS
        energy = moved * memory.energy_pj_per_byte
        if row.energy_pj_per_element is not None:
            energy = count * row.energy_pj_per_element
        return Cost(
            latency_ms=row.fixed_us * MS_PER_US + variable if "latency_ms" in self.metrics else 0.0,
            energy_mj=energy * MJ_PER_PJ if "energy_mj" in self.metrics else 0.0,
        )
