"""A family holds exactly what its members are on their own, in fewer bytes."""

import json
import time

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from haq import Experiment, InputError
from haq.adaptive import load, load_onnx
from haq.commands.cli import app
from haq.commands.export import export_policy
from haq.edges.documents import write_json
from haq.export import load_quantized
from haq.runs.family import front_policies, make_family
from haq.values.formats import Precision
from haq.values.policy import Policy

QUICKSTART = "experiments/quickstart.toml"
FORMATS = ("w2a4", "w4a4", "w8a8")


@pytest.fixture(scope="module")
def experiment():
    return Experiment.load(QUICKSTART, overrides=["evaluator.samples=100"])


@pytest.fixture(scope="module")
def policies(experiment):
    names = experiment.network.layer_names
    uniform = [Policy.uniform(names, Precision.parse(text)) for text in FORMATS]
    mixed = Policy({name: Precision.parse("w8a8" if name == names[0] else "w4a4") for name in names})
    return [uniform[0], uniform[1], mixed, uniform[2]]


@pytest.fixture(scope="module")
def made(experiment, policies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family") / "F"
    return folder, make_family(experiment, policies, folder)


@pytest.fixture(scope="module")
def batch(experiment):
    return experiment.data.test.head(32).inputs


def test_each_member_is_the_policy_exported_alone(experiment, policies, made, batch, tmp_path):
    family = load(made[0], experiment.model)
    for number, policy in enumerate(policies):
        write_json(tmp_path / "policy.json", {"policy": policy.to_doc()})
        export_policy(experiment, tmp_path / "policy.json", tmp_path / "alone.safetensors", format="torch")
        alone = load_quantized(experiment.model, tmp_path / "alone.safetensors")
        assert torch.equal(family.predict(batch, number), alone(batch))
        assert family.members[number].policy == policy.to_doc()
        assert family.members[number].search_score == pytest.approx(family.members[number].alone)


def test_what_members_share_is_stored_once(made):
    sizes = made[1]["torch"]
    assert sizes["bytes"] == (made[0] / "weights.safetensors").stat().st_size
    with safe_open(made[0] / "weights.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    contents = [(t.dtype, t.shape, t.numpy().tobytes()) for t in tensors if t.dtype != torch.bfloat16]
    assert len(set(contents)) == len(contents)
    # Layers that two members have in one format, and all floats, are there once: less than three quarters.
    assert sizes["bytes"] < 0.75 * sizes["sum_of_members"]


def test_switching_is_between_two_calls_and_takes_less_than_a_millisecond(experiment, made, batch):
    family = load(made[0], experiment.model)
    assert family.current == 3
    best = family(batch)
    start = time.perf_counter()
    for _ in range(100):
        family.switch(0)
        family.switch(3)
    assert (time.perf_counter() - start) / 200 < 1e-3
    family.switch(0)
    assert not torch.equal(family(batch), best)
    family.switch(3)
    assert torch.equal(family(batch), best)
    with pytest.raises(InputError, match="members 0 to 3"):
        family.switch(4)


def test_nested_weights_are_leading_bits_and_are_not_stored_again(experiment, policies, made, batch, tmp_path):
    document = make_family(experiment, policies, tmp_path / "N", nested=True, onnx=False)
    assert document["torch"]["bytes"] < 0.9 * made[1]["torch"]["bytes"]
    family = load(tmp_path / "N", experiment.model)
    name = experiment.network.layer_names[1]
    low, high = (family.module(number).get_submodule(name).weight for number in (1, 3))
    stored = json.loads((tmp_path / "N" / "family.json").read_text())["members"]
    with safe_open(tmp_path / "N" / "weights.safetensors", "pt") as file:
        steps = file.get_tensor(stored[3]["tensors"][f"{name}.weight_scale.0"]).flatten().tolist()
    for row_low, row_high, step in zip(low.flatten(1), high.flatten(1), steps, strict=True):
        codes = [max(-8, min(7, int(np.floor((round(float(v) / step) + 8) / 16)))) for v in row_high]
        assert row_low.tolist() == pytest.approx([code * 16 * step for code in codes], rel=1e-5, abs=1e-7)
    assert f"{name}.weight_codes.0" in stored[1]["nested"]
    assert not stored[3]["nested"]
    # The most precise member is the same as without nesting.
    assert torch.equal(family.predict(batch, 3), load(made[0], experiment.model).predict(batch, 3))


def test_jointly_trained_members_have_one_set_of_weights_and_their_own_statistics(policies, tmp_path):
    experiment = Experiment.load(
        QUICKSTART, overrides=["evaluator.kind=qat", "evaluator.qat.shared_epochs=2.0", "evaluator.samples=100"]
    )
    document = make_family(experiment, policies[:2], tmp_path / "T", train=True, onnx=False)
    plain = Experiment.load(QUICKSTART, overrides=["evaluator.samples=100"])
    untrained = plain.evaluator("search")(policies[0]).score
    assert document["members"][0]["search_score"] > untrained + 3  # 2-bit weights: training regains what rounding lost
    family = load(tmp_path / "T", experiment.model)
    norms = [
        [part.running_mean for part in family.module(member).modules() if isinstance(part, torch.nn.BatchNorm2d)]
        for member in (0, 1)
    ]
    if norms[0]:
        assert any(not torch.equal(a, b) for a, b in zip(*norms, strict=True))


def _off(found, wanted):
    """Norm of the difference by that of what is wanted: a rounding tie moves single values by a step."""
    return float((found - wanted).norm() / wanted.norm())


def test_any_onnx_runtime_runs_a_member_where_it_lies(experiment, made, batch):
    family, sessions = load(made[0], experiment.model), load_onnx(made[0])
    for number in range(4):
        plain = ort.InferenceSession(str(made[0] / f"member-{number}.onnx"), providers=["CPUExecutionProvider"])
        (found,) = plain.run(None, {plain.get_inputs()[0].name: batch.numpy()})
        assert _off(torch.from_numpy(found), family.predict(batch, number)) < 0.02
        assert _off(sessions.predict(batch, number), family.predict(batch, number)) < 0.02
    external = onnx.load(made[0] / "member-0.onnx", load_external_data=False)
    assert any(t.data_location == onnx.TensorProto.EXTERNAL for t in external.graph.initializer)
    files = [*made[0].glob("member-*.onnx"), made[0] / "weights.bin"]
    assert made[1]["onnx"]["bytes"] == sum(file.stat().st_size for file in files)
    assert made[1]["onnx"]["bytes"] < made[1]["onnx"]["sum_of_members"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.clear(), "schema_version"),
        (lambda d: d.update(members=[]), "members: expected a list"),
        (lambda d: d.update(members=[3]), "members: expected objects"),
        (lambda d: d["members"][0].update(costs="cheap"), r"members\.0\.costs"),
        (lambda d: d["members"][1]["tensors"].clear(), "member-1"),
        (lambda d: d["members"][1].update(tensors={"a": "nowhere"}), "damaged"),
        (lambda d: d["members"][1].pop("state"), "damaged"),
    ],
)
def test_a_damaged_family_is_one_line(experiment, made, tmp_path, change, message):
    document = json.loads((made[0] / "family.json").read_text())
    change(document)
    (tmp_path / "family.json").write_text(json.dumps(document))
    (tmp_path / "weights.safetensors").write_bytes((made[0] / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, experiment.model)
    assert "\n" not in str(caught.value)


def test_what_is_no_family_or_of_another_model_is_refused(experiment, policies, made, tmp_path):
    with pytest.raises(InputError, match="is no family"):
        load(tmp_path, experiment.model)
    with pytest.raises(InputError, match="another model"):
        load(made[0], torch.nn.Linear(3, 3))
    with pytest.raises(InputError, match="is not empty"):
        make_family(experiment, policies, made[0])
    (tmp_path / "family.json").write_text((made[0] / "family.json").read_text())
    (tmp_path / "weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="not a safetensors file"):
        load(tmp_path, experiment.model)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = CliRunner().invoke(app, ["search", QUICKSTART, "--out", str(folder), "--set", "search.max_trials=3"])
    assert done.exit_code == 0, done.output
    return folder


def test_members_of_a_run_are_beaten_by_nothing_that_was_measured(experiment, run):
    chosen = front_policies(run, experiment, count=3)
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()[1:]]
    rows = [(trial["costs"]["latency_ms"], trial["measurement"]["score"]) for trial in trials]
    known = {json.dumps(trial["policy"], sort_keys=True): row for trial, row in zip(trials, rows, strict=True)}
    found = [known[json.dumps(policy.to_doc(), sort_keys=True)] for policy in chosen]
    assert found == sorted(found)
    assert len(found) == 3
    for cost, score in found:
        assert not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in rows)


def test_the_command_packs_a_run_and_adapts_it(run, tmp_path):
    family = tmp_path / "F"
    done = CliRunner().invoke(app, ["family", str(run), "--members", "3", "--out", str(family), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert len(document["members"]) == 3
    assert document["torch"]["bytes"] < document["torch"]["sum_of_members"]
    adapted = CliRunner().invoke(app, ["adapt", str(family), "--cost", "60%", "--by", "latency_ms", "--json"])
    assert adapted.exit_code == 0, adapted.output
    rows = {row["name"]: row for row in json.loads(adapted.stdout)["rows"]}
    assert set(rows) == {"member-0", "member-1", "member-2", "cascade", "oracle", "random"}
    assert rows["cascade"]["costs"]["latency_ms"] <= 0.7 * rows["member-2"]["costs"]["latency_ms"]
    assert rows["oracle"]["accuracy"] >= max(row["accuracy"] for row in rows.values()) - 1e-9
    sizes = CliRunner().invoke(app, ["adapt", str(family), "--by", "size_bytes"])
    assert "no cost that adds up over what runs" in str(sizes.exception)
    refused = CliRunner().invoke(app, ["adapt", str(family), "--accuracy", "100"])
    assert isinstance(refused.exception, InputError)
    assert "the best that can is" in str(refused.exception)
    again = CliRunner().invoke(app, ["family", str(run), "--out", str(family)])
    assert isinstance(again.exception, InputError)
    assert "is not empty" in str(again.exception)
