"""Roofline: a layer takes as long as its arithmetic or its memory traffic, whichever is longer."""

from __future__ import annotations

from pydantic import Field, model_validator

from haq.hardware.base import MJ_PER_PJ, MS_PER_NS, MS_PER_US, ProfileCostModel
from haq.hardware.profile import HardwareProfile
from haq.hardware.sections import OP_CLASSES, Fraction, KindSection, NonNegative, Positive, Rows, operation
from haq.values.formats import Precision
from haq.values.network import LayerSpec


class RateRow(Rows):
    """Peak multiply-accumulate rate, as `gmac_per_s` or as `mac_per_cycle` of the device's clock."""

    gmac_per_s: Positive | None = None
    mac_per_cycle: Positive | None = None
    efficiency: Fraction = 1.0
    """Share of the peak that real layers reach."""
    overhead_us: NonNegative = 0.0
    """Per call, on top of the device's own overhead per layer."""
    energy_pj_per_mac: NonNegative | None = None

    @model_validator(mode="after")
    def _one_rate(self) -> RateRow:
        if (self.gmac_per_s is None) == (self.mac_per_cycle is None):
            raise ValueError("give either gmac_per_s or mac_per_cycle")
        return self


class Roofline(KindSection):
    """Latency of a layer = max(compute, memory) + overhead."""

    rates: tuple[RateRow, ...] = Field(min_length=1)


class RooflineModel(ProfileCostModel[Roofline]):
    """Latency = max(compute, memory) + overhead (Williams et al., CACM 2009).

    Compute is the padded multiply-accumulates over rate x efficiency. Memory traffic is the packed weights plus the
    part of the layer's input and output that the on-chip buffer cannot hold; a separate weight memory works
    in parallel.
    """

    section = Roofline

    @classmethod
    def check_profile(cls, profile: HardwareProfile) -> None:
        section = cls.section_of(profile)
        if profile.device.frequency_mhz is None and any(row.mac_per_cycle for row in section.rates):
            raise ValueError("device.frequency_mhz: missing; mac_per_cycle needs it")
        for op in OP_CLASSES:
            for precision in profile.precisions(op):
                if not any(row.fits(op, precision) for row in section.rates):
                    raise ValueError(f"{precision} is in formats but no roofline.rates row fits it for {op}; add one")

    @classmethod
    def knows_energy(cls, profile: HardwareProfile) -> bool:
        return all(row.energy_pj_per_mac is not None for row in cls.section_of(profile).rates)

    def _rate(self, layer: LayerSpec, precision: Precision) -> RateRow:
        return next(row for row in self.section_of(self.profile).rates if row.fits(operation(layer), precision))

    def _off_chip_bytes(self, layer: LayerSpec, precision: Precision) -> tuple[float, float]:
        weights, activations = self.moved_bytes(layer, precision)
        return weights, max(0.0, activations - self.profile.memory.buffer_bytes)

    def _memory_ms(self, layer: LayerSpec, precision: Precision) -> float:
        memory = self.profile.memory
        weights, activations = self._off_chip_bytes(layer, precision)
        if memory.weight_bandwidth_gb_per_s is not None:
            weights_ms = weights / memory.weight_bandwidth_gb_per_s * MS_PER_NS
            return max(weights_ms, activations / (memory.bandwidth_gb_per_s or float("inf")) * MS_PER_NS)
        return (weights + activations) / (memory.bandwidth_gb_per_s or float("inf")) * MS_PER_NS

    def _latency_ms(self, layer: LayerSpec, precision: Precision) -> float:
        row = self._rate(layer, precision)
        mac_per_ns = row.gmac_per_s or (row.mac_per_cycle or 0) * (self.profile.device.frequency_mhz or 0) * 1e-3
        compute_ms = self.aligned_macs(layer, precision) / (mac_per_ns * row.efficiency) * MS_PER_NS
        overhead_ms = layer.calls * (self.profile.overhead.per_layer_us + row.overhead_us) * MS_PER_US
        return max(compute_ms, self._memory_ms(layer, precision)) + overhead_ms

    def _energy_mj(self, layer: LayerSpec, precision: Precision) -> float:
        memory = self.profile.memory
        compute_pj = self.aligned_macs(layer, precision) * (self._rate(layer, precision).energy_pj_per_mac or 0.0)
        off_chip_pj = sum(self._off_chip_bytes(layer, precision)) * memory.energy_pj_per_byte
        on_chip_pj = sum(self.moved_bytes(layer, precision)) * memory.buffer_energy_pj_per_byte
        return (compute_pj + off_chip_pj + on_chip_pj) * MJ_PER_PJ
