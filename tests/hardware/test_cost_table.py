from __future__ import annotations

from pathlib import Path

import pytest
from networks import conv, linear, transposed
from profiles import ROOFLINE

from haq.hardware import build_cost_model, parse_profile, shape_key
from haq.hardware.kinds.table import read_table
from haq.values.errors import InputError
from haq.values.formats import Precision

HEADER = "layer,weight,activation,latency_ms,energy_mj\n"
CONV = conv("features.0", 16, 32, 3, 28, stride=2)
KEY = "conv2d_i16_o32_k3x3_s2x2_g1_in28x28_out14x14"
W8A8, W4A8 = Precision.parse("w8a8"), Precision.parse("w4a8")


def model(folder: Path, rows: str, *, energy: bool = False):
    (folder / "times.csv").write_text(HEADER + rows)
    document = {**ROOFLINE, "kind": "table", "roofline": None, "table": {"file": "times.csv", "energy": energy}}
    profile = parse_profile(document)
    profile._folder = folder
    return build_cost_model(profile)


@pytest.mark.parametrize(
    ("layer", "key"),
    [
        (CONV, KEY),
        (conv("d", 8, 8, 3, 4, groups=8), "conv2d_i8_o8_k3x3_s1x1_g8_in4x4_out4x4"),
        (conv("twice", 8, 8, 3, 4, calls=2), "conv2d_i8_o8_k3x3_s1x1_g1_in4x4_out4x4"),
        (transposed("t", 8, 5, 2, 4), "conv_transpose2d_i8_o5_k2x2_s2x2_g1_in4x4_out8x8"),
        (linear("f", 512, 10), "linear_i512_o10_n1"),
        (linear("f", 512, 10, rows=7), "linear_i512_o10_n7"),
    ],
    ids=["conv", "depthwise", "called twice", "transposed", "linear", "rows"],
)
def test_shape_keys(layer, key: str) -> None:
    assert shape_key(layer) == key


def test_costs_are_looked_up_by_shape(tmp_path: Path) -> None:
    costs = model(tmp_path, f"{KEY},int8,int8,0.5,2.5\n{KEY},int4,int8,0.25,1\n", energy=True)
    assert costs.layer_cost(CONV, W8A8).latency_ms == 0.5
    assert costs.layer_cost(CONV, W4A8).energy_mj == 1.0
    assert costs.layer_cost(CONV, W4A8).size_bytes == 16 * 32 * 9 / 2 + 32 * 4


def test_a_row_with_the_layers_name_comes_first(tmp_path: Path) -> None:
    costs = model(tmp_path, f"{KEY},int8,int8,0.5,\nfeatures.0,int8,int8,0.75,\n")
    assert costs.layer_cost(CONV, W8A8).latency_ms == 0.75
    assert "energy_mj" not in costs.metrics


def test_every_call_costs_a_row(tmp_path: Path) -> None:
    costs = model(tmp_path, "conv2d_i8_o8_k3x3_s1x1_g1_in4x4_out4x4,int8,int8,0.5,\n")
    assert costs.layer_cost(conv("twice", 8, 8, 3, 4, calls=2), W8A8).latency_ms == 1.0


def test_a_missing_row_names_layer_key_precision_file_and_remedy(tmp_path: Path) -> None:
    costs = model(tmp_path, f"{KEY},int8,int8,0.5,\n")
    message = rf"times.csv: no row for layer 'features.0' \({KEY}\) in w4a8; measure it and add the row"
    with pytest.raises(InputError, match=message):
        costs.layer_cost(CONV, W4A8)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param("", "holds no rows", id="empty"),
        pytest.param("a,int8,int8,1\n", "line 2: expected 5 values", id="too few values"),
        pytest.param("a,int8,int8,1,2,3\n", "line 2: expected 5 values", id="too many values"),
        pytest.param("a,int8,int8,fast,\n", "line 2: latency_ms 'fast' is not a number", id="no number"),
        pytest.param("a,int8,int8,nan,\n", "line 2: latency_ms 'nan' must be finite", id="NaN"),
        pytest.param(
            "a,int8,int8,1,\na,int4,int8,-1,\n", "line 3: latency_ms '-1' must be finite and not neg", id="neg"
        ),
        pytest.param("a,int8,int8,1,inf\n", "line 2: energy_mj 'inf'", id="infinite energy"),
        pytest.param("a,int99,int8,1,\n", "line 2: unknown number format 'int99'", id="format"),
        pytest.param("a,int8,int8,1,\na,int8,int8,2,\n", "line 3: a in w8a8 appears twice", id="twice"),
        pytest.param('a,"int8,int8,1,\n', "cannot be read", id="open quote"),
    ],
)
def test_malformed_tables_are_refused_in_one_line(tmp_path: Path, rows: str, message: str) -> None:
    path = tmp_path / "times.csv"
    path.write_text(HEADER + rows)
    with pytest.raises(InputError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_promises_energy_must_state_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 3: energy_mj is empty; measure it or set table\.energy = false"):
        model(tmp_path, "a,int8,int8,1,1\nb,int8,int8,1,\n", energy=True)


def test_other_columns_binary_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text("layer,latency\na,1\n")
    with pytest.raises(InputError, match="the first line must be layer,weight,activation,latency_ms,energy_mj"):
        read_table(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_table(path)
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "none.csv")
