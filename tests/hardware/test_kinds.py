"""Every kind of cost model passes the conformance checks, and a new one is one class and one line."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from profiles import ROOFLINE

from haq.hardware import COST_MODELS, build_cost_model, parse_profile, shape_key
from haq.hardware.base import ProfileCostModel
from haq.hardware.sections import KindSection
from haq.testing import check_cost_model
from haq.testing.cost_models import sample_layers
from haq.values.errors import InputError
from haq.values.formats import Precision

COMMON = {key: value for key, value in ROOFLINE.items() if key not in ("kind", "roofline", "formats")}
INTEGERS = [{"weights": ["int2", "int4", "int8"], "activations": ["int4", "int8"]}]
KINDS: dict[str, dict[str, Any]] = {
    "capability": {"formats": INTEGERS},
    "table": {"formats": INTEGERS, "table": {"file": "times.csv", "energy": True}},
    "roofline": {"formats": ROOFLINE["formats"], "roofline": ROOFLINE["roofline"]},
    "bit_serial": {
        "formats": INTEGERS,
        "bit_serial": {"rows": 8, "columns": 8, "depth_bits": 64, "port_bits": 64, "energy_pj_per_bit_mac": 0.1},
    },
    "systolic": {
        "formats": INTEGERS,
        "systolic": {
            "rows": 16,
            "columns": 8,
            "max_bits": 8,
            "min_bits": 2,
            "weight_buffer_bytes": 1024,
            "input_buffer_bytes": 2048,
        },
    },
}


def document(kind: str, folder: Path) -> dict[str, Any]:
    if kind == "table":
        with (folder / "times.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["layer", "weight", "activation", "latency_ms", "energy_mj"])
            for layer, weight, activation in product(sample_layers(), ("int2", "int4", "int8"), ("int4", "int8")):
                rows.writerow([shape_key(layer), weight, activation, 0.5, 0.25])
    return {**COMMON, "kind": kind, **KINDS[kind]}


@pytest.mark.parametrize("kind", list(COST_MODELS))
def test_a_kind_passes_the_conformance_checks(kind: str, tmp_path: Path) -> None:
    check_cost_model(document(kind, tmp_path), folder=tmp_path)


class Lanes(KindSection):
    """A made-up device with a number of lanes."""

    lanes: int
    energy_pj: float | None = None


class LanesModel(ProfileCostModel[Lanes]):
    """One multiply-accumulate per lane and cycle."""

    section = Lanes

    @classmethod
    def check_profile(cls, profile):
        profile.require("device.frequency_mhz", profile.device.frequency_mhz)

    @classmethod
    def knows_energy(cls, profile):
        return cls.section_of(profile).energy_pj is not None

    def _latency_ms(self, layer, precision):
        return layer.macs / self.section_of(self.profile).lanes / self.profile.device.frequency_mhz / 1e3

    def _energy_mj(self, layer, precision):
        return layer.macs * self.section_of(self.profile).energy_pj * 1e-9


LANES = {**COMMON, "kind": "lanes", "formats": INTEGERS, "lanes": {"lanes": 4, "energy_pj": 2.0}}


def test_a_new_kind_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COST_MODELS, "lanes", LanesModel)
    check_cost_model(LANES)
    cost = build_cost_model(parse_profile(LANES)).layer_cost(sample_layers()[-1], Precision.parse("w8a8"))
    assert cost.latency_ms == pytest.approx(640 / 4 / 100e6 * 1e3)
    assert cost.energy_mj == pytest.approx(640 * 2e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": None}, r"kind 'lanes' needs a section \[lanes\]"),
        ({"lanes": {"lanes": "many"}}, r"^lanes\.lanes: .*integer"),
        ({"device": {"vendor": "n", "chip": "n"}}, "device.frequency_mhz: missing; kind 'lanes' needs it"),
        ({"kind": "lane"}, "kind: unknown kind 'lane'; known: .*lanes"),
        ({"kind": ["lanes"]}, "kind: .*string"),
        ({"section": {"lanes": 4}}, "section: unknown key"),
    ],
    ids=["no section", "wrong value", "no clock", "unknown", "list", "internal name"],
)
def test_what_a_new_kind_lacks_is_named(change, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COST_MODELS, "lanes", LanesModel)
    with pytest.raises(InputError, match=message):
        parse_profile({**LANES, **change})


def divides_by_the_clock(model: type[ProfileCostModel]) -> type[ProfileCostModel]:
    """`LanesModel` without its check."""
    return type("Careless", (model,), {"check_profile": classmethod(lambda cls, profile: None)})


def test_the_checks_notice_a_kind_that_needs_a_clock_and_does_not_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COST_MODELS, "lanes", divides_by_the_clock(LanesModel))
    with pytest.raises((AssertionError, TypeError)):
        check_cost_model(LANES)


def test_the_checks_notice_energy_that_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def claims_nothing(self, layer, precision):
        cost = ProfileCostModel.layer_cost(self, layer, precision)
        return type(cost)(latency_ms=cost.latency_ms, energy_mj=1.0, size_bytes=cost.size_bytes, bops=cost.bops)

    liar = type("Liar", (LanesModel,), {"layer_cost": claims_nothing})
    monkeypatch.setitem(COST_MODELS, "lanes", liar)
    with pytest.raises(AssertionError, match="does not claim"):
        check_cost_model({**LANES, "lanes": {"lanes": 4}})
