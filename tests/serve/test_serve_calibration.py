"""Ranges that are renewed while serving: of what was seen, told from noise, swapped between requests, resumed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch

from haq import Experiment, InputError
from haq.adaptive.family import load_states
from haq.commands.cli import app
from haq.deployed.state import restore
from haq.edges.documents import write_json
from haq.runs.family import make_family
from haq.serve.drift import Drift
from haq.serve.engine import Engine, Version
from haq.serve.log import Log
from haq.serve.ranges import judged, reference, renewed
from haq.serve.requests import Asked
from haq.serve.reservoir import Reservoir, batches, check_budget
from haq.serve.worker import calibrate, prepare
from haq.values.formats import Precision
from haq.values.policy import Policy

OVERRIDES = ["evaluator.samples=50", "quantization.activation_calibration=minmax"]


@pytest.fixture(scope="module")
def experiment():
    return Experiment.load("experiments/quickstart.toml", overrides=OVERRIDES)


@pytest.fixture(scope="module")
def family(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "F"
    policies = [Policy.uniform(experiment.network.layer_names, Precision.parse(text)) for text in ("w8a4", "w8a8")]
    make_family(experiment, policies, folder, onnx=True)
    return folder


def samples(tensor):
    return [{"input": one[None]} for one in tensor]


def asked(tensor):
    return Asked({"input": tensor}, len(tensor), {})


def test_new_ranges_are_those_of_what_layers_read_and_the_inputs_keep_theirs(experiment, family):
    state = load_states(family, experiment.model)[1]
    images = experiment.data.search.head(32).inputs * 3.0
    first, second = list(state.layers)[:2]
    fresh = renewed(experiment.model, state, [images[:16], images[16:]])
    assert fresh.layers[first].input is state.layers[first].input
    read = []
    module = restore(experiment.model, state, hooks=False)
    module.get_submodule(second).register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad():
        module(state.layers[first].input(images))
    assert fresh.layers[second].input.scale == pytest.approx(float(read[0].max()) / 255, rel=1e-5)
    assert fresh.layers[second].input.scale != state.layers[second].input.scale
    assert all(fresh.layers[name].weight is layer.weight for name, layer in state.layers.items())


def test_a_range_that_would_be_empty_is_refused(experiment, family):
    state = load_states(family, experiment.model)[0]
    dead = {name: torch.full_like(state.tensors[name], -1.0) for name in ("bn_stem.bias",)}
    dead["bn_stem.weight"] = torch.zeros_like(state.tensors["bn_stem.weight"])
    state = replace(state, tensors={**state.tensors, **dead})
    with pytest.raises(InputError, match="layer depthwise: read nothing but zeros"):
        renewed(experiment.model, state, [torch.rand(8, 1, 8, 8)])


def test_a_calibration_on_shifted_inputs_is_better_there_and_its_log_line_says_by_how_much(
    experiment, family, tmp_path
):
    from safetensors.torch import save_file

    images = 0.3 * experiment.data.search.head(96).inputs  # all ranges but the inputs' are too wide for them
    path = tmp_path / "samples.safetensors"
    save_file({f"{n}.input": one[None].contiguous() for n, one in enumerate(images)}, str(path))
    out = tmp_path / "out"
    out.mkdir()
    found = calibrate({"family": str(family), "current": str(family), "samples": str(path)}, out)
    assert found["better"]
    assert found["error"] < 0.98 * found["error_now"]
    held = batches(samples(images[1::2]))
    state = load_states(family, experiment.model)[1]
    wanted = reference(experiment.model, state, [batch["input"] for batch in held])
    assert judged(out, wanted, held).error == pytest.approx(found["error"], rel=1e-4)
    again = calibrate({"family": str(family), "current": str(out), "samples": str(path)}, tmp_path)
    assert not again["better"]  # the same once more is no gain


def test_statistics_for_drift_are_of_the_search_split(experiment, family, tmp_path):
    assert prepare({"family": str(family), "current": str(family)}, tmp_path)["samples"] == len(
        experiment.given_data.search.inputs
    )
    statistics = np.load(tmp_path / "statistics.npy")
    images = experiment.given_data.search.inputs.flatten(1).double()
    assert statistics[:, 0] == pytest.approx(images.mean(dim=1).numpy(), abs=1e-6)
    assert statistics[:, 2] == pytest.approx(images.amax(dim=1).numpy(), abs=1e-6)


@pytest.mark.slow
def test_drift_is_told_from_noise_at_the_rate_that_was_asked_for():
    rng = np.random.default_rng(0)
    alarms = 0
    for seed in range(20):
        drift = Drift(rng.normal(size=(600, 9)), alarms=0.05, seed=seed)
        alarms += sum(drift(rng.normal(size=(256, 9))) > drift.threshold for _ in range(10))
        assert drift(rng.normal(1.0, size=(256, 9))) > drift.threshold
    assert alarms / 200 < 0.15


def test_a_reservoir_keeps_the_newest_within_its_bytes():
    reservoir = Reservoir(10 * 16)
    for number in range(25):
        reservoir.add(asked(torch.full((2, 4), float(number))))
    assert (len(reservoir), reservoir.bytes, reservoir.seen) == (10, 160, 50)
    assert [float(one["input"][0, 0]) for one in reservoir.newest(3)] == [23.0, 24.0, 24.0]
    with pytest.raises(InputError, match="a calibration needs 64: give 4096 or more"):
        check_budget(4095, [[None, 16]])


def test_batches_keep_shapes_apart():
    mixed = samples(torch.zeros(3, 4)) + samples(torch.zeros(2, 5))
    assert [tuple(one["input"].shape) for one in batches(mixed, size=2)] == [(2, 4), (1, 4), (2, 5)]


def test_a_log_resumes_behind_a_torn_line_and_belongs_to_one_service_and_one_family(tmp_path):
    write_json(tmp_path / "family.json", {"a": 1})
    from haq.serve.log import fingerprint

    log = Log(tmp_path / "state")
    log.append("swap", version=1, folder="version-1", family=fingerprint(tmp_path))
    log.append("kept", error=1.0)
    with pytest.raises(InputError, match="another haq serve"):
        Log(tmp_path / "state")
    log._file.write(b'{"event": "swap", "ver')
    log._file.close()
    again = Log(tmp_path / "state")
    assert again.last_version(tmp_path) == (1, "version-1")
    again.append("rollback", version=0, folder=None, family=fingerprint(tmp_path))
    assert again.last_version(tmp_path) == (0, None)
    again._file.close()
    write_json(tmp_path / "family.json", {"a": 2})
    last = Log(tmp_path / "state")
    assert (last.last_version(tmp_path), last.largest_version, len(last.entries)) == ((0, None), 1, 3)


class _Constant:
    """A family whose outputs say which version it is."""

    members = (None,)

    def __init__(self, number):
        self.number = number

    def predict(self, inputs, member=-1):
        time.sleep(0.0005)
        return torch.full((len(inputs["input"]), 1), float(self.number))


def test_over_fifty_swaps_under_load_every_answer_is_of_one_version():
    async def main():
        engine = Engine(Version(0, _Constant(0)), window=0.0005, queue=1000)
        running = asyncio.ensure_future(engine.run())
        answers = []

        async def client():
            for _ in range(60):
                answers.append(await engine.ask(asked(torch.zeros(3, 1))))

        clients = [asyncio.ensure_future(client()) for _ in range(8)]
        for number in range(1, 51):
            await asyncio.sleep(0.001)
            engine.swap(Version(number, _Constant(number)))
        await asyncio.gather(*clients)
        running.cancel()
        return answers

    answers = asyncio.run(main())
    assert len(answers) == 480
    assert all(answer.outputs[0].flatten().tolist() == [float(answer.version)] * 3 for answer in answers)
    assert len({answer.version for answer in answers}) > 10


def test_too_few_bytes_are_refused_before_it_serves(family, tmp_path):
    from typer.testing import CliRunner

    command = ["serve", str(family), "--port", "0", "--state", str(tmp_path), "--reservoir-bytes", "1000"]
    assert "holds 3 samples" in str(CliRunner().invoke(app, command).exception)


@pytest.mark.slow
def test_a_drift_is_calibrated_away_and_survives_a_kill(experiment, family, tmp_path):
    images = (0.3 * experiment.data.search.head(256).inputs).tolist()

    def start():
        command = [sys.executable, "-m", "haq", "serve", str(family), "--port", "0", "--state", str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
        return process, process.stdout.readline().split(" on ")[1].split()[0]

    def ask():
        body = json.dumps({"inputs": images}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{url}/predict", data=body)) as answer:
            return json.loads(answer.read())

    process, url = start()
    before, version, end = ask(), 0, time.monotonic() + 240
    while not version and time.monotonic() < end:
        time.sleep(1)
        version = ask()["version"]
    after = ask()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process, url = start()
    resumed = ask()
    process.send_signal(signal.SIGTERM)
    assert (process.wait(timeout=20), version >= 1, resumed["version"]) == (0, True, after["version"])
    assert resumed["outputs"] == after["outputs"] != before["outputs"]
