"""The cache's key holds all that a measurement depends on: every configuration key is tried, new ones as well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import save_file

from haq.edges.documents import read_toml
from haq.experiment.config import ExperimentConfig
from haq.experiment.experiment import Experiment
from haq.experiment.measurement_key import measurement_context, numerics
from haq.values.errors import InputError
from haq.zoo import load_model

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
MINE = """
from haq.zoo import DATASETS, load_model
def model(width=1): return load_model("digits_cnn")
def data(part=1): return DATASETS["digits"]()
def other(outputs, targets): return float(outputs.sum())
def loss(outputs, targets): return outputs.square().mean()
def step(model, inputs, targets): return model(inputs).square().mean()
"""
NO_PART_OF_IT = (
    "schema_version", "name", "space.", "search.", "sensitivity.", "cache.", "executor.", "objective", "budgets",
)  # fmt: skip
"""What is measured and how long, not what a measurement comes to. The space counts where training draws from it."""
ELSEWHERE = (
    "threads", "seed", "device.", "evaluator.device", "evaluator.ladder", "evaluator.reduction", "evaluator.kind",
)  # fmt: skip
"""Tested below, or in the key by what they do: a device by its quantization, a rung by its name."""
OWN_MODEL, OWN_DATA = {"model": {"factory": "mine_of_keys:model"}}, {"data": {"factory": "mine_of_keys:data"}}
DISTILLED, GROUP = {"evaluator.qat.distillation": "kl"}, {"evaluator.qat.data_parallel": 2}
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "quantization.repairs": ({}, {"quantization.repairs": ["gptq"]}),
    "model.name": (OWN_MODEL, {"model": {"name": "digits_cnn"}}),
    "model.factory": ({}, OWN_MODEL),
    "model.options": (OWN_MODEL, {"model.options": {"width": 2}}),
    "model.checkpoint": ({}, {"model.checkpoint": "other.safetensors"}),
    "model.float_modules": ({}, {"model.float_modules": ["fc1"]}),
    "data.targets": ({"evaluator.metric": "mine_of_keys:other", "evaluator.loss": "mine_of_keys:loss"},
                     {"data.targets": "float_probabilities"}),
    "evaluator.metric": ({}, {"evaluator.metric": "mine_of_keys:other"}),
    "evaluator.loss": ({}, {"evaluator.loss": "mine_of_keys:loss"}),
    "evaluator.qat.training_step": ({}, {"evaluator.qat.training_step": "mine_of_keys:step"}),
    "evaluator.qat.distillation_weight": (DISTILLED, {"evaluator.qat.distillation_weight": 0.25}),
    "evaluator.qat.checkpoint_steps": (GROUP, {"evaluator.qat.checkpoint_steps": 7}),
    "evaluator.qat.compressor": (GROUP, {"evaluator.qat.compressor": "onebit"}),
    "evaluator.qat.compressor_options": (
        {**GROUP, "evaluator.qat.compressor": "onebit"},
        {"evaluator.qat.compressor_options": {"error_feedback": True}},
    ),
    "evaluator.qat.temperature": (DISTILLED, {"evaluator.qat.temperature": 2.0}),
}  # fmt: skip
"""Key -> what it needs beside, and the change, where one cannot be made up from its type."""
BY_CONTENT = ("data.name", "data.factory", "data.options")
"""Data count by their tensors: the same ones from elsewhere measure the same."""
_OF_MODEL_AND_DATA = ("model", "given_data", "data", "network", "hashes")


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a section and of those in it, with its type."""
    for name, field in section.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        inner = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if inner is None:
            yield prefix + name, field.annotation
        else:
            yield from leaves(inner, f"{prefix}{name}.")


def values(kind: Any, now: Any) -> Iterator[Any]:
    """Values of a type that may be valid, other than `now`."""
    origin = get_origin(kind)
    if origin is Literal:
        yield from (value for value in get_args(kind) if value != now)
    elif origin in (Union, UnionType):
        for part in get_args(kind):
            yield from values(part, now)
    elif origin is not None and hasattr(kind, "__metadata__"):
        yield from values(get_args(kind)[0], now)
    elif kind is bool:
        yield not now
    elif kind is int:
        yield from (value for value in (7, 3, 1, 2, 64) if value != now)
    elif kind is float:
        yield from (value for value in (0.25, 0.5, 2.0, 75.0) if value != now)


KEYS = [key for key, _ in leaves(ExperimentConfig) if not key.startswith((*NO_PART_OF_IT, *ELSEWHERE, *BY_CONTENT))]


def load(*changes: dict[str, Any], folder: Path = QUICKSTART.parent) -> Experiment:
    """The quickstart on few samples, with keys changed; a whole section where the key is one."""
    document = read_toml(QUICKSTART)
    small = {"evaluator.samples": 16, "quantization.calibration_samples": 16, "evaluator.device": "cpu"}
    for key, value in (item for change in (small, *changes) for item in change.items()):
        *path, last = key.split(".")
        table = document
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return Experiment(ExperimentConfig.model_validate_json(json.dumps(document), strict=True), folder=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where an experiment's own module and checkpoint lie."""
    place = tmp_path_factory.mktemp("keys")
    (place / "mine_of_keys.py").write_text(MINE)
    save_file({k: 1.5 * v for k, v in load_model("digits_cnn").state_dict().items()}, place / "other.safetensors")
    return place


@pytest.fixture(scope="module")
def loaded():
    """The quickstart's model and data, which most keys leave alone."""
    experiment = load()
    return {name: getattr(experiment, name) for name in _OF_MODEL_AND_DATA}


def alternatives(key: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `key` needs beside, and changes to try."""
    if key in CHANGES:
        needs, change = CHANGES[key]
        return needs, [change]
    now: Any = load({"evaluator.kind": "qat", "evaluator.qat": {}}).config
    for part in key.split("."):
        now = getattr(now, part)
    return {}, [{key: value} for value in values(dict(leaves(ExperimentConfig))[key], now)]


def context(
    loaded: dict[str, Any], *changes: dict[str, Any], rung: str, fresh: bool = False, folder: Path = QUICKSTART.parent
) -> dict[str, Any]:
    experiment = load(*changes, folder=folder)
    if not fresh:
        experiment.__dict__ |= loaded
    return measurement_context(experiment, rung=rung)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_a_measurement_depends_on_is_in_the_caches_key(key, loaded, folder):
    rung = "qat" if key.startswith("evaluator.qat") else "ptq"
    needs, changes = alternatives(key)
    needs = {**({"evaluator.kind": "qat"} if rung == "qat" else {}), **needs}
    options: Any = {"rung": rung, "fresh": key.startswith(("model.", "data.")), "folder": folder}
    before, found = context(loaded, needs, **options), []
    for change in changes:
        try:
            found.append(context(loaded, needs, change, **options) != before)
        except (InputError, ValidationError):
            continue
    assert found, f"{key}: no other value could be made up; add one to CHANGES, or the key to NO_PART_OF_IT"
    assert any(found), f"{key} is not in the cache's key"


def test_data_and_weights_count_by_their_content(loaded):
    def of(**replaced: Any) -> dict[str, Any]:
        experiment = load()
        experiment.__dict__ |= {**{name: loaded[name] for name in ("model", "given_data")}, **replaced}
        return measurement_context(experiment, rung="ptq")

    splits = loaded["given_data"]
    fewer = replace(splits, train=splits.train.head(100))
    assert of() == of() != of(given_data=fewer)


def test_threads_and_rung_are_in_the_key(loaded):
    cpu = torch.device("cpu")
    assert numerics(cpu, threads=1) != numerics(cpu, threads=3)
    assert context(loaded, rung="ptq") != context(loaded, rung="bn")


def test_the_seed_counts_where_samples_of_a_repair_are_drawn(loaded):
    adaround = {"quantization.repairs": ["adaround"]}
    assert context(loaded, {"seed": 0}, rung="adaround") != context(loaded, {"seed": 1}, rung="adaround")
    assert context(loaded, adaround, {"seed": 0}, rung="ptq") != context(loaded, adaround, {"seed": 1}, rung="ptq")
    assert context(loaded, {"seed": 0}, rung="gptq") == context(loaded, {"seed": 1}, rung="gptq")


@pytest.mark.parametrize("rung", ["qat", "qat:5", "shared"])
def test_the_seed_counts_where_something_is_trained(loaded, rung):
    qat = {"evaluator.kind": "qat"}
    assert context(loaded, qat, {"seed": 0}, rung=rung) != context(loaded, qat, {"seed": 1}, rung=rung)


@pytest.mark.parametrize(("rung", "counts"), [("ptq", False), ("qat", False), ("shared", True)])
def test_the_space_counts_where_training_draws_from_it(loaded, rung, counts):
    kind, space = {"evaluator.kind": rung}, {"space.weights": ["int4", "int8"]}
    assert (context(loaded, kind, rung=rung) != context(loaded, kind, space, rung=rung)) == counts


@pytest.mark.parametrize(
    "change", [{"search.max_trials": 9}, {"budgets": {"bops": "50%"}}, {"name": "other"}, {"seed": 1}]
)
def test_what_is_searched_is_not_in_the_key(loaded, change):
    assert context(loaded, rung="ptq") == context(loaded, change, rung="ptq")
