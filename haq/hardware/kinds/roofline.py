"""Roofline: a layer takes as long as its arithmetic or its memory traffic, whichever is longer."""

from __future__ import annotations

from haq.hardware.base import MJ_PER_PJ, MS_PER_NS, MS_PER_US, ProfileCostModel
from haq.hardware.sections import RateRow, Roofline, operation
from haq.values.formats import Precision
from haq.values.network import LayerSpec


class RooflineModel(ProfileCostModel):
    """Latency = max(compute, memory) + overhead (Williams et al., CACM 2009).

    Compute is the padded multiply-accumulates over rate x efficiency. Memory traffic is the packed weights plus the
    part of the layer's input and output that the on-chip buffer cannot hold; a separate weight memory works
    in parallel.
    """

    @property
    def _section(self) -> Roofline:
        section = self.profile.roofline
        assert section is not None  # the profile's validator saw to it
        return section

    def _rate(self, layer: LayerSpec, precision: Precision) -> RateRow:
        return next(row for row in self._section.rates if row.fits(operation(layer), precision))

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
