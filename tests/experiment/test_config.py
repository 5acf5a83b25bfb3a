"""Experiment files: read, overridden, refused with one clear line."""

import pytest

from haq.edges.documents import read_json
from haq.experiment.config import load_experiment
from haq.values.errors import InputError

GOOD = """
name = "x"
[model]
name = "digits_cnn"
[data]
name = "digits"
[device]
profile = "cortex_m7"
[budgets]
latency_ms = 4.0
"""


def write(tmp_path, text):
    path = tmp_path / "x.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_and_overrides(tmp_path):
    config = load_experiment(
        write(tmp_path, GOOD),
        overrides=["seed=3", "space.weights=['int4', 'int8']", "budgets.latency_ms=60%", "search.strategy=greedy"],
    )
    assert (config.seed, config.space.weights, config.search.strategy) == (3, ("int4", "int8"), "greedy")
    assert config.budgets == {"latency_ms": "60%"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "x"', 'name = "x"\nsede = 1', "sede: unknown key"),
        ('name = "digits"', "", "data: give either `name` .* or `factory`"),
        ("latency_ms = 4.0", "latency_ms = -1", "budgets: latency_ms = -1"),
        ("latency_ms = 4.0", "latency_ms = 0", "a budget is a number above 0"),
        ("latency_ms = 4.0", "latency_ms = nan", "budgets"),
        ("latency_ms = 4.0", 'latency_ms = "a lot"', "percentage of uniform 8 bit"),
        ("latency_ms = 4.0", "latency = 4.0", "unknown budget 'latency'; known: latency_ms"),
        ("latency_ms = 4.0", "", "name at least one budget"),
        ('[model]\nname = "digits_cnn"', "", "model: missing"),
        ('[model]\nname = "digits_cnn"', '[model]\nfactory = "no colon"', "model.factory"),
        ('name = "x"', 'name = "a/b"', "name"),
        ('name = "x"', 'name = "x"\nseed = "one"', "seed: .*got 'one'"),
        ("[budgets]", '[space]\nweights = ["int4", "int99"]\n[budgets]', "unknown number format 'int99'"),
        ("[budgets]", "[space]\nweights = []\n[budgets]", "name at least one format"),
        ("[budgets]", '[space.layers]\nfc = ["8"]\n[budgets]', "'8' is no precision"),
        ("[budgets]", '[evaluator]\nkind = "guess"\n[budgets]', "evaluator.kind"),
        ("[budgets]", "[budgets", "not valid TOML"),
        ("[budgets]", '[model]\nname = "y"\n[budgets]', "not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(InputError, match=message) as error:
        load_experiment(write(tmp_path, GOOD.replace(old, new)))
    assert "\n" not in str(error.value)
    assert "x.toml" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.toml: no such file"):
        load_experiment(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("override", ["seed", "=1", "name.sub=1"])
def test_a_bad_override_is_named(tmp_path, override):
    with pytest.raises(InputError, match="--set"):
        load_experiment(write(tmp_path, GOOD), overrides=[override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' appears twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_json_is_read_strictly(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_json(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)
