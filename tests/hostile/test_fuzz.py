"""Every kind of file that `haq` reads, damaged in many ways: it is read, or refused in one line, and nothing else.

The default run takes a few of each kind; `HAQ_FUZZ=1000 pytest tests/hostile/test_fuzz.py` (or `-m slow`) a thousand.
"""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_run import write_fake_run
from mutate import byte_variants, json_variants, line_variants
from PIL import Image
from safetensors.torch import save_file

import haq
from haq.bench import load_ground_truth
from haq.edges.documents import content_digest
from haq.execute import MeasurementCache
from haq.experiment.config import load_experiment
from haq.experiment.experiment import Experiment
from haq.experiment.loading import load_float_model
from haq.experiment.policy_files import load_policy
from haq.hardware import build_cost_model, load_profile
from haq.hardware.costs import cost_report
from haq.hardware.kinds.table import read_table
from haq.problem.problem import load_problem
from haq.profiling.journal import Measurements
from haq.report import facts
from haq.report.captions import captions
from haq.report.compare import compare_data, comparison_rows
from haq.results.read import load_run
from haq.runs.remeasure import Stopwatch
from haq.runs.sweep import load_sweep, sweep_runs
from haq.search.journal import Journal, stored_trials
from haq.sensitivity import SensitivityTable
from haq.sensitivity.interactions import InteractionTable
from haq.solve.solve import solve_document
from haq.values.errors import InfeasibleError, InputError
from haq.values.formats import Precision
from haq.values.network import Network
from haq.values.policy import Policy
from haq.values.trial import Measurement
from haq.zoo.images import load_images

ROOT = Path(__file__).parents[2]
FEW, MANY = 25, int(os.environ.get("HAQ_FUZZ", "1000"))
Variants = Callable[[random.Random], bytes]
Case = tuple[str, Variants, Callable[[Path], Any]]
"""Name of the file, its variants, and what reads it."""

QUICKSTART = ROOT / "experiments" / "quickstart.toml"
LAYERS = ("conv1", "conv2", "fc")
PROBLEM = {
    "schema_version": 1,
    "layers": [
        {
            "name": name,
            "choices": [
                {"weight_bits": b, "activation_bits": 8, "sensitivity": 1.0 / b, "costs": {"size_bytes": 8.0 * b}}
                for b in (2, 4, 8)
            ],
        }
        for name in LAYERS
    ],
    "ties": [["conv1", "conv2"]],
    "activation_ties": [["conv2", "fc"]],
    "edges": [{"from": "conv1", "to": "conv2", "metric": "latency_ms", "costs": [[0, 1, 1], [1, 0, 1], [1, 1, 0]]}],
    "tensors": [{"from": "conv2", "to": ["fc"], "metric": "latency_ms", "activation_bits": [8], "costs": [[0]]}],
    "interactions": [{"between": ["conv1", "fc"], "costs": [[0.1] * 3] * 3}],
    "peak": [{"step": "conv1", "fixed": 3, "live": {"conv1": [1, 2, 3]}}],
    "offsets": {"size_bytes": 5},
    "budgets": {"size_bytes": 100, "latency_ms": 5},
    "objective": "sensitivity",
}  # fmt: skip
TRIAL = {
    "number": 0,
    "source": "ilp",
    "policy": {name: {"weight_bits": 4, "activation_bits": 8} for name in LAYERS},
    "costs": {"size_bytes": 12.0, "sensitivity": 0.5},
    "measurement": {"score": 90.0, "fidelity": "ptq", "seconds": 0.1, "details": {"loss": 0.3, "score_error": None}},
}
MODELOPT = {"quant_cfg": [{"quantizer_name": "*", "cfg": {"num_bits": 8}}, {"quantizer_name": "*fc*", "enable": False}]}
LEGACY = {"quant_cfg": {"*weight_quantizer": {"num_bits": 4, "axis": 0}, "default": {"enable": False}}}
ENCODING = {"bitwidth": 8, "dtype": "int", "is_symmetric": "True"}
AIMET = {
    "version": "0.6.1",
    "activation_encodings": {"LAYER": {"input": {"0": ENCODING}, "output": {"0": ENCODING}}},
    "param_encodings": {"LAYER.weight": [ENCODING]},
}
AIMET_1 = {"version": "1.0.0", "activation_encodings": [{"name": "x", "bw": 8, "dtype": "INT"}],
           "param_encodings": [{"name": "LAYER.weight", "bw": 4, "dtype": "INT"}]}  # fmt: skip


@pytest.fixture(scope="module")
def experiment():
    return Experiment.load(QUICKSTART)


def _policy(experiment: Experiment) -> dict[str, Any]:
    return Policy.uniform(experiment.network.layer_names, Precision.parse("w4a8")).to_doc()


def _named(document: dict[str, Any], network: Network) -> Any:
    return json.loads(json.dumps(document).replace("LAYER", network.layer_names[0]))


def _text(path: str) -> bytes:
    return (ROOT / path).read_bytes()


def _lines(*documents: Any) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


def _fake_run(folder: Path, name: str, file: Path) -> None:
    run = write_fake_run(folder / "run", layers=5, trials=4)
    file.replace(run / name)
    found = load_run(run)
    for rows in (facts.tiles, captions, facts.method):
        rows(found)
    metrics = list(found.result.answer.costs)
    facts.layer_rows(found, metrics)
    facts.conversion_rows(found.result.breakdown)
    for rows in (facts.policy_rows, facts.budget_rows, facts.proof, facts.score_note):
        rows(found.result)
    comparison_rows(compare_data([found, found]))


def _run_file(name: str) -> Case:
    def content(tmp: Path) -> bytes:
        return (write_fake_run(tmp, layers=5, trials=4) / name).read_bytes()

    import tempfile

    with tempfile.TemporaryDirectory() as tmp:
        raw = content(Path(tmp))
    if name.endswith(".jsonl"):
        variants = line_variants(raw)
    else:
        variants = json_variants(json.loads(raw)) if name.endswith(".json") else byte_variants(raw)
    return name, variants, lambda file: _fake_run(file.parent, name, file)


def _signed(document: dict[str, Any]) -> Variants:
    """Half of the variants carry the checksum that their content wants."""
    plain = json_variants(document)

    def variant(rng: random.Random) -> bytes:
        content = plain(rng)
        try:
            value = json.loads(content)
            if isinstance(value, dict) and rng.random() < 0.8:
                value.pop("sha256", None)
                content = json.dumps({**value, "sha256": content_digest(value)}).encode()
        except (ValueError, OverflowError, RecursionError):
            pass
        return content

    return variant


def _cache(file: Path) -> None:
    cache = MeasurementCache(file.parent / "cache", {"a": 1})
    policy = Policy.from_doc(TRIAL["policy"])
    cache.put(policy, Measurement(1.0, "ptq"))
    (entry,) = (path for path in (file.parent / "cache").rglob("*.json") if path.name != "context.json")
    file.replace(entry)
    found = cache.get(policy)
    assert found is None or isinstance(found, Measurement)


def _cache_entry() -> dict[str, Any]:
    from haq.execute.cache import _digest

    return {"context": _digest({"a": 1}), "policy": TRIAL["policy"], "measurement": Measurement(1.0, "ptq").to_doc()}


def _signed_entry(rng: random.Random) -> bytes:
    from haq.execute.cache import _digest

    content = json_variants(_cache_entry())(rng)
    try:
        value = json.loads(content)
        return json.dumps({**value, "sha256": _digest(value)}).encode()
    except (ValueError, TypeError, OverflowError, RecursionError):
        return content


def _profile(experiment: Experiment, file: Path) -> None:
    model = build_cost_model(load_profile(file))
    network = experiment.network
    for text in ("w8a8", "w4a4", "w2a8"):
        policy = Policy.uniform(network.layer_names, Precision.parse(text))
        cost_report(network, model, policy).to_doc()


def _solve(file: Path) -> None:
    solve_document(load_problem(file), top=2, gap=0.0, time_limit=2.0, solver="auto")


def _resume(file: Path) -> None:
    with Journal.open(file, {"signature": "abc"}, resume=True):
        pass


def _measurements(file: Path) -> None:
    Measurements(file, {"cpu": "x", "threads": 1}, resume=True).close()


def _image(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(3 * 64, dtype=np.uint8).reshape(8, 8, 3)).save(stream, format=kind)
    return stream.getvalue()


def _images(file: Path) -> None:
    folder = file.parent / "images"
    folder.mkdir(exist_ok=True)
    for index in range(3):
        (folder / f"{index}.png").write_bytes(_image("png"))
    file.replace(folder / file.name)
    load_images(str(folder), size=4, train=1, search=1, test=1)


def _arrays() -> bytes:
    return (ROOT / "benchmarks/ground_truth/digits_cnn_ptq.npz").read_bytes()


def _truth(file: Path) -> None:
    source = ROOT / "benchmarks/ground_truth/digits_cnn_ptq.json"
    other = file.with_suffix(".json" if file.suffix == ".npz" else ".npz")
    other.write_bytes(source.with_suffix(other.suffix).read_bytes())
    truth = load_ground_truth(file.with_suffix(".json"))
    truth.measure(truth.problem.policy([0] * len(truth.problem.tables.sizes)))


def _exported(experiment: Experiment) -> bytes:
    import tempfile

    from haq.export import ExportOptions, export

    experiment.quantized.apply(Policy.from_doc(_policy(experiment)))
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / "m.safetensors"
        inputs = experiment.given_data.train.head(2).inputs
        export(experiment.quantized, experiment.model, out, inputs=inputs, format="torch", options=ExportOptions())
        return out.read_bytes()


def _weights(experiment: Experiment) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as tmp:
        save_file({k: v.contiguous() for k, v in experiment.model.state_dict().items()}, Path(tmp) / "w")
        return (Path(tmp) / "w").read_bytes()


def _checkpoint(experiment: Experiment, file: Path) -> None:
    config = experiment.config.model.model_copy(update={"checkpoint": file})
    load_float_model(config, folder=file.parent)


def cases(experiment: Experiment) -> dict[str, Case]:
    network = experiment.network
    policy = {"schema_version": 1, "policy": _policy(experiment)}
    table = {"schema_version": 1, "metric": "kl", "signature": "s", "details": {},
             "weights": {"fc": {"int4": 0.5}}, "activations": {"fc": {"int8": 0.25}}}  # fmt: skip
    pairs = {"schema_version": 1, "signature": "s", "pairs": [{"between": ["a", "b"], "costs": [[0.0]]}], "details": {}}
    truth = json.loads(_text("benchmarks/ground_truth/digits_cnn_ptq.json"))
    measured = _lines(
        {"setup": {"cpu": "x", "threads": 1}}, {"layers": {"float": {"fc": 2.0}, "low": {"fc": 1.0}}},
        {"energy": None}, {"unmet": {}}, {"round": {"a": 1.0, "b": 2.0}},
    )  # fmt: skip
    journal = _lines({"schema_version": 1, "setup": {"signature": "abc"}}, TRIAL)
    exported, weights = _exported(experiment), _weights(experiment)
    return {
        "experiment": ("e.toml", byte_variants(_text("experiments/quickstart.toml")), load_experiment),
        "sweep": ("s.toml", byte_variants(_sweep()), lambda file: sweep_runs(load_sweep(file))),
        "profile": ("p.toml", byte_variants(_text("hardware_profiles/riscv_xpulpnn.toml")),
                    lambda file: _profile(experiment, file)),
        "table": ("t.csv", byte_variants(b"layer,weight,activation,latency_ms,energy_mj\nfc,int8,int8,1.5,0.2\n"),
                  read_table),
        "policy": ("p.json", json_variants(policy), lambda file: load_policy(file, network)),
        "modelopt": ("p.json", json_variants(MODELOPT), lambda file: load_policy(file, network)),
        "modelopt, old": ("p.json", json_variants(LEGACY), lambda file: load_policy(file, network)),
        "aimet": ("p.json", json_variants(_named(AIMET, network)), lambda file: load_policy(file, network)),
        "aimet, 1.0": ("p.json", json_variants(_named(AIMET_1, network)), lambda file: load_policy(file, network)),
        "problem": ("p.json", json_variants(PROBLEM), _solve),
        "journal": ("j.jsonl", line_variants(journal), stored_trials),
        "journal, resumed": ("j.jsonl", line_variants(journal), _resume),
        "result.json": _run_file("result.json"),
        "policy.json": _run_file("policy.json"),
        "trials.jsonl": _run_file("trials.jsonl"),
        "sensitivity.csv": _run_file("sensitivity.csv"),
        "stored experiment": ("policy.json", json_variants(json.loads(
            json.dumps({"provenance": {"config": experiment.config.model_dump(mode="json")}}))),
            Experiment.stored),
        "sensitivity.json": ("s.json", _signed(table), lambda file: SensitivityTable.load(file, signature="s")),
        "interactions.json": ("i.json", _signed(pairs), lambda file: InteractionTable.load(file, signature="s")),
        "latency.json": ("l.json", _signed({"pace": 1.0, "times": {"a": 2.0}}),
                         lambda file: Stopwatch(lambda: None, file, {}, threads=1)),  # type: ignore[arg-type,return-value]
        "cache entry": ("e.json", _signed_entry, _cache),
        "measurements": ("m.jsonl", line_variants(measured), _measurements),
        "ground truth": ("g.json", json_variants(truth), _truth),
        "ground truth, arrays": ("g.npz", byte_variants(_arrays()), _truth),
        "exported model": ("m.safetensors", byte_variants(exported),
                           lambda file: haq.load_quantized(experiment.model, file)),
        "checkpoint": ("m.safetensors", byte_variants(weights), lambda file: _checkpoint(experiment, file)),
        "png": ("x.png", byte_variants(_image("png")), _images),
        "jpeg": ("x.jpg", byte_variants(_image("jpeg")), _images),
    }  # fmt: skip


def _sweep() -> bytes:
    return next(iter(sorted((ROOT / "experiments/sweeps").glob("*.toml")))).read_bytes()


KINDS = (
    "experiment", "sweep", "profile", "table", "policy", "modelopt", "modelopt, old", "aimet", "aimet, 1.0", "problem",
    "journal", "journal, resumed", "result.json", "policy.json", "trials.jsonl", "sensitivity.csv", "stored experiment",
    "sensitivity.json", "interactions.json", "latency.json", "cache entry", "measurements", "ground truth",
    "ground truth, arrays", "exported model", "checkpoint", "png", "jpeg",
)  # fmt: skip


@pytest.fixture(scope="module")
def known(experiment):
    found = cases(experiment)
    assert set(found) == set(KINDS)
    return found


def attack(case: Case, folder: Path, *, count: int, first: int = 0) -> tuple[int, int]:
    """How many of `count` variants were read and how many refused; anything else is raised, with its seed."""
    name, variants, read = case
    accepted = refused = 0
    for seed in range(first, first + count):
        file = folder / name
        file.write_bytes(variants(random.Random(seed)))
        try:
            read(file)
            accepted += 1
        except (InputError, InfeasibleError) as error:
            refused += 1
            message = str(error)
            assert 0 < len(message) < 4100, f"seed {seed}: {len(message)} characters"
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    return accepted, refused


@pytest.mark.parametrize("kind", KINDS)
def test_some_damaged_files_are_read_or_refused(kind, known, tmp_path):
    torch.manual_seed(0)
    _, refused = attack(known[kind], tmp_path, count=4 if kind in ("problem", "result.json") else FEW)
    assert refused or kind == "cache entry"  # a cache entry that is no good is a miss, not an error


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_damaged_files_are_read_or_refused(kind, known, tmp_path):
    accepted, refused = attack(known[kind], tmp_path, count=MANY, first=10_000)
    assert accepted + refused == MANY
