"""`haq study`: its cells are what the evaluators measure, its bytes what a plain count gives."""

import csv
import json
import math

import pytest
from PIL import Image

from haq import Experiment, InputError
from haq.runs.study import run_study, treatments
from haq.values.formats import Precision
from haq.values.policy import Policy

QUICKSTART = "experiments/quickstart.toml"
OPTIONS = ["evaluator.samples=200", "device.profile=bitfusion"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "S"
    experiment = Experiment.load(QUICKSTART, overrides=OPTIONS)
    return folder, run_study(experiment, folder, repairs=("none", "bn", "gptq"), calibrations=("minmax", "mse"))


def test_every_cell_is_what_its_settings_measure(made):
    cells = {(row["precision"], row["treatment"]): row for row in made[1]["rows"]}
    assert len(cells) == 4 * 2 * 3
    for text, calibration, repair in (("w2a8", "minmax", "gptq"), ("w4a4", "mse", "bn"), ("w4a8", "mse", "none")):
        kind = "ptq" if repair == "none" else repair
        settings = [f"evaluator.kind={kind}", f"quantization.activation_calibration={calibration}"]
        alone = Experiment.load(QUICKSTART, overrides=[*OPTIONS, *settings])
        policy = Policy.uniform(alone.network.layer_names, Precision.parse(text))
        row = cells[text, f"{calibration}, {repair}"]
        assert row["score"] == alone.evaluator("search")(policy).score
        share = row["score"] / 100
        assert row["noise"] == pytest.approx(100 * math.sqrt(share * (1 - share) / 200), rel=0.02)


def test_bytes_are_those_of_a_plain_count(made):
    network = Experiment.load(QUICKSTART, overrides=OPTIONS).network
    for text, row in made[1]["costs"].items():
        precision = Precision.parse(text)
        bits = sum(layer.params for layer in network.layers) * precision.weight.bits
        assert row["weight_bytes"] == pytest.approx(bits / 8, rel=0.02)
        moved = sum(layer.input_elements + layer.output_elements for layer in network.layers)
        assert row["moved_activation_bytes"] == pytest.approx(moved * precision.activation.bits / 8, rel=0.02)
        assert row["latency_ms"] > 0


def test_the_sentence_says_which_loses_more(made):
    cells = {(row["precision"], row["treatment"]): row["score"] for row in made[1]["rows"]}
    sentence = next(one for one in made[1]["conclusions"] if one.startswith("mse, none:"))
    lost = [
        cells["w8a8", "mse, none"] - cells["w4a8", "mse, none"],
        cells["w4a8", "mse, none"] - cells["w4a4", "mse, none"],
    ]
    assert f"(w8a8 to w4a8) lose {lost[0]:.3g} points" in sentence
    assert f"(w4a8 to w4a4) {lost[1]:.3g} points" in sentence
    assert "a tie" in sentence or ("weights are" in sentence) == (lost[0] > lost[1])


def test_files_hold_the_same_and_the_picture_is_one(made):
    folder, document = made
    assert json.loads((folder / "study.json").read_text()) == json.loads(json.dumps(document))
    rows = list(csv.DictReader((folder / "study.csv").open()))
    assert [float(row["score"]) for row in rows] == [row["score"] for row in document["rows"]]
    with Image.open(folder / "study.png") as image:
        assert image.size[0] > 600
        assert len(image.convert("RGB").resize((60, 30)).getcolors(1800)) > 10


def test_what_a_model_has_no_use_for_is_a_cell_with_its_reason(tmp_path):
    experiment = Experiment.load(
        QUICKSTART, overrides=[*OPTIONS, "quantization.calibration_samples=8", "evaluator.samples=50"]
    )
    document = run_study(experiment, tmp_path / "S", precisions=("w4a4",), repairs=("none", "adaround"))
    plain, repaired = document["rows"]
    assert plain["score"] is not None
    assert repaired["score"] is None
    assert "adaround needs 32 samples" in repaired["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repairs": ("magic",)}, "--repair 'magic': unknown; known: none, bn"),
        ({"calibrations": ("luck",)}, "--calibration 'luck': unknown; known: minmax"),
        ({"precisions": ("w4b4",)}, "--precision 'w4b4'"),
    ],
)
def test_unknown_names_are_one_line_and_leave_nothing(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        run_study(Experiment.load(QUICKSTART), tmp_path / "S", **arguments)
    assert not (tmp_path / "S").exists()


def test_a_study_is_not_overwritten(made):
    with pytest.raises(InputError, match="a study already is there"):
        run_study(Experiment.load(QUICKSTART), made[0])


def test_fine_tuning_stands_once_whatever_the_calibrations():
    names = [one.name for one in treatments(("none", "gptq", "qat"), ("minmax", "mse"))]
    assert names == ["minmax, none", "minmax, gptq", "mse, none", "mse, gptq", "qat"]
