"""Systolic arrays of fused bit bricks (BitFusion: Sharma et al., ISCA 2018)."""

from __future__ import annotations

from haq.hardware.base import MJ_PER_PJ, MS_PER_NS, MS_PER_US, ProfileCostModel
from haq.hardware.packing import gemm
from haq.hardware.profile import HardwareProfile
from haq.hardware.sections import Count, KindSection, NonNegative
from haq.values.families import ceil_div
from haq.values.formats import Precision
from haq.values.network import LayerSpec


class Systolic(KindSection):
    """A BitFusion-like array of `rows` (input channels) x `columns` (output channels) fusion units."""

    rows: Count
    columns: Count
    max_bits: Count
    min_bits: Count
    weight_buffer_bytes: Count
    """Usable for one tile: half of a double-buffered memory."""
    input_buffer_bytes: Count
    output_bits: Count | None = None
    """Width in which results leave the array; the activation format's when left out."""
    energy_pj_per_cycle: NonNegative | None = None
    """Of the whole array in a busy cycle."""


class SystolicModel(ProfileCostModel[Systolic]):
    """A fusion unit does one product at `max_bits` or `fused` products of fewer bits at once, along the input channels.

    Compute and memory overlap: latency = max(cycles / frequency, off-chip bytes / bandwidth) + overhead. As the inner
    dimension is spread over rows x fused products, the granularity of its alignment grows as bits shrink. Grouped
    convolutions run group by group.
    """

    section = Systolic

    @classmethod
    def check_profile(cls, profile: HardwareProfile) -> None:
        profile.require("device.frequency_mhz", profile.device.frequency_mhz)
        profile.require("memory.bandwidth_gb_per_s", profile.memory.bandwidth_gb_per_s)
        profile.require_integers(max_bits=cls.section_of(profile).max_bits, key="systolic.max_bits")

    @classmethod
    def knows_energy(cls, profile: HardwareProfile) -> bool:
        return cls.section_of(profile).energy_pj_per_cycle is not None

    def fused(self, precision: Precision) -> int:
        """Products per fusion unit and cycle: floor(max / a) floor(max / w), bits below `min_bits` counted as those."""
        array = self.section_of(self.profile)
        lanes = (array.max_bits // max(fmt.bits, array.min_bits) for fmt in (precision.weight, precision.activation))
        return next(lanes) * next(lanes)

    def cycles(self, layer: LayerSpec, precision: Precision) -> int:
        """Busy cycles for the whole batch, convolutions as matrix products (im2col)."""
        array, product = self.section_of(self.profile), gemm(layer)
        steps = ceil_div(product.depth, array.rows * self.fused(precision))
        return self.batch * product.rows * product.groups * ceil_div(product.columns, array.columns) * steps

    def off_chip_bytes(self, layer: LayerSpec, precision: Precision) -> float:
        """Off-chip traffic: where neither weights nor inputs fit their buffer, the cheaper of the two is read again."""
        array = self.section_of(self.profile)
        weights = float(layer.calls * self.read_weight_bytes(layer, precision.weight))
        inputs = self.storage_bytes(layer.input_elements, precision.activation)
        outputs = self.storage_bytes(layer.output_elements, precision.activation)
        if array.output_bits is not None:
            outputs = ceil_div(self.batch * layer.output_elements * array.output_bits, 8)
        weight_tiles = ceil_div(int(weights), array.weight_buffer_bytes)
        input_tiles = ceil_div(inputs, array.input_buffer_bytes)
        return min(weights + inputs * weight_tiles, weights * input_tiles + inputs) + outputs

    def _latency_ms(self, layer: LayerSpec, precision: Precision) -> float:
        compute_ms = self.cycles(layer, precision) / (self.profile.device.frequency_mhz or 0) * MS_PER_US
        memory_ms = self.off_chip_bytes(layer, precision) / (self.profile.memory.bandwidth_gb_per_s or 0) * MS_PER_NS
        return max(compute_ms, memory_ms) + layer.calls * self.profile.overhead.per_layer_us * MS_PER_US

    def _energy_mj(self, layer: LayerSpec, precision: Precision) -> float:
        memory = self.profile.memory
        core_pj = self.cycles(layer, precision) * (self.section_of(self.profile).energy_pj_per_cycle or 0.0)
        off_chip = self.off_chip_bytes(layer, precision)
        return (core_pj + off_chip * (memory.energy_pj_per_byte + memory.buffer_energy_pj_per_byte)) * MJ_PER_PJ
