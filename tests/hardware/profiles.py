"""Profiles written down by hand."""

from __future__ import annotations

from typing import Any

from haq.hardware import HardwareProfile, parse_profile

ROOFLINE: dict[str, Any] = {
    "name": "toy",
    "title": "Toy",
    "kind": "roofline",
    "device": {"vendor": "nobody", "chip": "none", "frequency_mhz": 100.0},
    "provenance": {"source": "made up for tests", "date": "2026-01-02", "derived": "all of it"},
    "formats": [{"pairs": ["w8a8", "w4a8", "w4a4", "wfp32afp32"]}],
    "memory": {"bandwidth_gb_per_s": 10.0, "energy_pj_per_byte": 100.0, "buffer_energy_pj_per_byte": 1.0},
    "overhead": {"per_layer_us": 2.0},
    "roofline": {"rates": [{"gmac_per_s": 1.0, "efficiency": 0.5, "energy_pj_per_mac": 0.25}]},
    "switch": [
        {"from": "int8", "to": "int4", "fixed_us": 3.0, "per_element_ns": 0.5, "energy_pj_per_element": 7.0},
        {"from": "*", "to": "*", "fixed_us": 1.0},
    ],
}


def profile(**changes: Any) -> HardwareProfile:
    """The toy profile with some of its keys replaced."""
    return parse_profile({**ROOFLINE, **changes})
