"""Bit-serial matrix engines (BISMO: Umuroglu et al., FPL 2018): cost grows with weight bits x activation bits."""

from __future__ import annotations

from haq.hardware.base import MJ_PER_PJ, MS_PER_US, ProfileCostModel
from haq.hardware.packing import gemm
from haq.hardware.profile import HardwareProfile
from haq.hardware.sections import Count, KindSection, NonNegative
from haq.values.families import ceil_div
from haq.values.formats import Precision
from haq.values.kinds import KINDS
from haq.values.network import LayerSpec


class BitSerial(KindSection):
    """A BISMO-like array of `rows` x `columns` dot-product units of `depth_bits`, fed by ports of `port_bits`."""

    rows: Count
    columns: Count
    depth_bits: Count
    port_bits: Count
    energy_pj_per_bit_mac: NonNegative | None = None
    """Of one multiply-accumulate per weight bit and activation bit: energy per MAC = this x w x a."""


class BitSerialModel(ProfileCostModel[BitSerial]):
    """The closed form that HAQ's published BISMO latency table follows, generalised to any array size.

    Of a layer as a matrix product of M rows, K depth and N columns, at w weight bits and a activation bits, with D the
    width of a dot-product unit and p = D / port width:

        activations = a M ceil(K / D) p                 fetched once
        weights     = w N ceil(K / D) p                 fetched once per sample by convolutions, once by linear layers
        compute     = w a ceil(M / rows) ceil(N / columns) ceil(K / D)
        cycles      = max(activations, weights, compute + weights / 2)

    The half of the weight fetch that compute does not hide is absent in linear and depthwise layers. A depthwise layer
    takes `columns` channels side by side.
    """

    section = BitSerial

    @classmethod
    def check_profile(cls, profile: HardwareProfile) -> None:
        profile.require("device.frequency_mhz", profile.device.frequency_mhz)
        profile.require_integers()

    @classmethod
    def knows_energy(cls, profile: HardwareProfile) -> bool:
        return cls.section_of(profile).energy_pj_per_bit_mac is not None

    def cycles(self, layer: LayerSpec, precision: Precision) -> float:
        """Clock cycles of `layer` for the whole batch."""
        array, product = self.section_of(self.profile), gemm(layer)
        w, a = precision.weight.bits, precision.activation.bits
        fetch = array.depth_bits / array.port_bits
        rows, words = self.batch * product.rows, ceil_div(product.depth, array.depth_bits)
        lanes = ceil_div(product.columns, array.columns) * product.groups
        streams = product.groups
        if layer.is_depthwise:
            lanes = streams = ceil_div(layer.out_channels, array.columns)
        reads = layer.calls * (1 if KINDS[layer.kind].is_linear else self.batch)
        activations = a * rows * words * streams * fetch
        weights = reads * w * words * product.columns * product.groups * fetch
        compute = w * a * ceil_div(rows, array.rows) * lanes * words
        exposed = 0.0 if layer.is_depthwise or KINDS[layer.kind].is_linear else weights / 2
        return max(activations, weights, compute + exposed)

    def _latency_ms(self, layer: LayerSpec, precision: Precision) -> float:
        busy_us = self.cycles(layer, precision) / (self.profile.device.frequency_mhz or 0)
        return (busy_us + layer.calls * self.profile.overhead.per_layer_us) * MS_PER_US

    def _energy_mj(self, layer: LayerSpec, precision: Precision) -> float:
        memory = self.profile.memory
        bit_macs = self.batch * layer.macs * precision.weight.bits * precision.activation.bits
        compute_pj = bit_macs * (self.section_of(self.profile).energy_pj_per_bit_mac or 0.0)
        moved = sum(self.moved_bytes(layer, precision))
        return (compute_pj + moved * (memory.energy_pj_per_byte + memory.buffer_energy_pj_per_byte)) * MJ_PER_PJ
