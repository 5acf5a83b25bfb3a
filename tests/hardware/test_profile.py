from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from networks import conv, linear, residual
from profiles import profile

from haq.hardware import (
    build_cost_model,
    cpu_capability,
    cpu_model,
    list_profiles,
    load_profile,
    network_digest,
    profile_names,
    profile_warnings,
    require_metrics,
)
from haq.hardware.sections import operation
from haq.values.errors import InputError
from haq.values.formats import Precision

GOOD = """
title = "Toy"
kind = "roofline"
device = { vendor = "nobody", chip = "none" }
memory = { bandwidth_gb_per_s = 1.0, ram_bytes = 1000 }

[provenance]
source = "made up for tests"
date = 2026-01-02
derived = "all of it"

[[formats]]
weights = ["int4", "int8"]
activations = ["int8"]

[[roofline.rates]]
gmac_per_s = 1.0
energy_pj_per_mac = 0.1
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "toy.toml"
    path.write_text(text)
    return path


def test_a_profile_is_named_after_its_file_and_found_by_path(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert load_profile(path).name == "toy"
    assert load_profile("toy.toml", base=tmp_path) == load_profile(path)


def test_profiles_in_the_working_directory_come_before_those_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hardware_profiles").mkdir()
    (tmp_path / "hardware_profiles" / "nvidia_t4.toml").write_text(GOOD)
    assert load_profile("nvidia_t4").kind == "roofline"
    monkeypatch.chdir(tmp_path)
    assert load_profile("nvidia_t4").title == "Toy"
    assert set(profile_names()) == {p.name for p in list_profiles()}
    assert len(profile_names()) > 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param(
            GOOD[GOOD.index("[prov") : GOOD.index("[[form")], "", "provenance: missing; add it", id="provenance"
        ),
        pytest.param('source = "made up for tests"', "", "provenance.source: missing", id="source"),
        pytest.param('source = "made up for tests"', 'source = ""', "provenance.source: ", id="empty source"),
        pytest.param("date = 2026-01-02", "", "provenance.date: missing", id="date"),
        pytest.param("date = 2026-01-02", 'date = "soon"', "provenance.date: ", id="no date"),
        pytest.param('derived = "all of it"', "", "provenance: say in at least one of `measured`", id="says nothing"),
        pytest.param("gmac_per_s = 1.0", "gmac_per_s = nan", "roofline.rates.0.gmac_per_s: ", id="NaN"),
        pytest.param("gmac_per_s = 1.0", "gmac_per_s = inf", "roofline.rates.0.gmac_per_s: ", id="infinite"),
        pytest.param("gmac_per_s = 1.0", "gmac_per_s = 0", "roofline.rates.0.gmac_per_s: .*greater than 0", id="zero"),
        pytest.param("gmac_per_s = 1.0", "gmac_per_s = -2.5", "greater than 0 .got -2.5", id="negative"),
        pytest.param("gmac_per_s = 1.0", 'gmac_per_s = "1"', "gmac_per_s: .*valid number", id="text"),
        pytest.param("gmac_per_s = 1.0", "gmac_per_s = true", "gmac_per_s: .*valid number", id="boolean"),
        pytest.param("gmac_per_s = 1.0", "", "give either gmac_per_s or mac_per_cycle", id="no rate"),
        pytest.param("gmac_per_s = 1.0", "mac_per_cycle = 2.0", "device.frequency_mhz: missing", id="no clock"),
        pytest.param("energy_pj_per_mac = 0.1", "energy_pj_per_mac = -1", "energy_pj_per_mac: ", id="negative energy"),
        pytest.param("energy_pj_per_mac", "energy_per_mac", "energy_per_mac: unknown key", id="unknown key"),
        pytest.param('kind = "roofline"', 'kind = "magic"', "kind: ", id="unknown kind"),
        pytest.param('kind = "roofline"', 'kind = "table"', r"kind 'table' needs a section \[table\]", id="section"),
        pytest.param('kind = "roofline"', 'kind = "capability"', r"does not read section \[roofline\]", id="surplus"),
        pytest.param('"int4", "int8"', '"int99"', "formats.0.weights.0: unknown number format 'int99'", id="format"),
        pytest.param('activations = ["int8"]', "", "give `pairs`, or both", id="half a product"),
        pytest.param(
            'activations = ["int8"]', 'activations = ["int4", "int8"]', "no switch row fits int4 -> int8", id="sw"
        ),
        pytest.param(
            "gmac_per_s", 'ops = ["conv"]\ngmac_per_s', "no roofline.rates row fits it for depthwise", id="ops"
        ),
        pytest.param("ram_bytes = 1000", "ram_bytes = 1.5", "memory.ram_bytes: ", id="half a byte"),
        pytest.param("ram_bytes = 1000 }", "ram_bytes =", "not valid TOML", id="truncated"),
        pytest.param('title = "Toy"', 'title = "a"\ntitle = "b"', "not valid TOML", id="duplicate key"),
    ],
)
def test_hostile_profiles_are_refused_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nvidia_t5", "unknown hardware profile 'nvidia_t5'; did you mean 'nvidia_t4'.*known: .*xeon_vnni_ort"),
        ("nowhere/toy.toml", "nowhere/toy.toml: no such hardware profile file"),
    ],
)
def test_unknown_profiles(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_profile(name)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (conv("c", 16, 8, 3, 4), "conv"),
        (conv("c", 3, 8, 1, 4), "stem"),
        (conv("c", 16, 8, 1, 4), "pointwise"),
        (conv("c", 8, 16, 3, 4, groups=8), "depthwise"),
        (conv("c", 16, 16, 1, 4, groups=4), "conv"),
        (linear("f", 3, 8), "linear"),
    ],
)
def test_operation_classes(layer, expected: str) -> None:
    assert operation(layer) == expected


def test_supported_and_accelerated_are_two_things() -> None:
    rows = [
        {"pairs": ["w8a8"]},
        {"pairs": ["wfp16afp16"], "accelerated": False},
        {"pairs": ["w4a8"], "ops": ["linear"]},
    ]
    model = build_cost_model(profile(formats=rows))
    w8a8, fp16, w4a8 = (Precision.parse(text) for text in ("w8a8", "wfp16afp16", "w4a8"))
    assert model.supported(conv("c", 16, 8, 3, 4)) == (w8a8, fp16)
    assert model.supported(linear("f", 16, 8)) == (w4a8, w8a8, fp16)
    assert model.accelerated(linear("f", 16, 8), w8a8)
    assert not model.accelerated(linear("f", 16, 8), fp16)


def test_capabilities_without_rates_refuse_latency_and_energy() -> None:
    model = build_cost_model(profile(kind="capability", roofline=None))
    require_metrics(model, ["size_bytes", "bops", "peak_activation_bytes", "sensitivity"])
    with pytest.raises(
        InputError, match=r"latency_ms: hardware profile 'toy' states no figures .*it models size_bytes"
    ):
        require_metrics(model, ["latency_ms"])
    cost = model.layer_cost(linear("f", 16, 8), Precision.parse("w8a8"))
    assert (cost.latency_ms, cost.size_bytes) == (0, 128 + 32)


def test_a_bit_serial_device_computes_integers_only() -> None:
    array = {"rows": 8, "columns": 8, "depth_bits": 64, "port_bits": 64}
    with pytest.raises(ValueError, match="a bit_serial device computes integers; remove fp32 from formats"):
        profile(kind="bit_serial", roofline=None, bit_serial=array)


def test_what_does_not_fit_the_device_is_warned_of(tmp_path: Path) -> None:
    toy = load_profile(write(tmp_path, GOOD))
    assert toy.warnings({"peak_activation_bytes": 1000.0, "size_bytes": 1e9}) == ()
    (warning,) = toy.warnings({"peak_activation_bytes": 1001.0})
    assert re.search(r"peak_activation_bytes 1,001 is more than the 1,000 bytes of RAM of toy", warning)


def test_the_digest_covers_the_table(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("[[roof")].replace('"roofline"', '"table"') + '[table]\nfile = "t.csv"\n'
    header = "layer,weight,activation,latency_ms,energy_mj\n"
    digests = []
    for time in (1, 2):
        (tmp_path / "t.csv").write_text(f"{header}a,int8,int8,{time},\n")
        digests.append(load_profile(write(tmp_path, text)).digest)
    assert digests[0] != digests[1]
    assert load_profile(tmp_path / "toy.toml").digest == digests[1]


def test_the_example_of_the_readme_loads(tmp_path: Path) -> None:
    readme = Path(__file__).parents[2] / "hardware_profiles" / "README.md"
    blocks = re.findall(r"```toml\n(.*?)```", readme.read_text(), re.DOTALL)
    (tmp_path / "my_accelerator.csv").write_text(
        "layer,weight,activation,latency_ms,energy_mj\nlinear_i16_o8_n1,int4,int8,0.5,\n"
    )
    model = build_cost_model(load_profile(write(tmp_path, blocks[0])))
    assert model.layer_cost(linear("f", 16, 8), Precision.parse("w4a8")).latency_ms == 0.5


MEASURED = {
    "cpu": cpu_model(),
    "package": "onnxruntime",
    "package_version": version("onnxruntime"),
    "threads": 1,
    "network": network_digest(residual()),
    "noise_floor_percent": 0.0,
    "error_percent": 0.0,
    "guard_percent": 0.0,
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exact": True, "capability": cpu_capability()}, ""),
        ({"capability": cpu_capability()}, "was measured with kernels that may saturate"),
        ({"exact": True, "capability": "x86_64 avx2 avx9_vnni"}, f"this processor has {cpu_capability()}, not x86_64"),
    ],
    ids=["of this machine", "before exports were exact", "of another processor"],
)
def test_a_measured_profile_says_where_it_does_not_hold(fields, message: str) -> None:
    warnings = profile_warnings(profile(measured=MEASURED | fields), residual())
    assert [message in warning for warning in warnings] == [True] * bool(message)
