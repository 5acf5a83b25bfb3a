"""Nodes, workers and drivers that are killed: the same measurements as undisturbed, none made twice, nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driver import TRIALS, search
from evaluators import Scripted, finished_evaluations

from haq import Experiment, Policy, run_experiment
from haq.execute import LocalExecutor, RayExecutor

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow]
HERE = Path(__file__).parent
QUICKSTART = HERE.parents[1] / "experiments" / "quickstart.toml"
PARALLEL = 4


def found(trials):
    return [(trial.number, trial.source, trial.policy.key, trial.measurement.score) for trial in trials]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return found(search(folder, LocalExecutor(Scripted({"folder": folder})), parallel=PARALLEL))


@pytest.fixture
def cluster():
    """Three nodes; the driver's own has no room for workers."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def test_a_node_killed_in_the_middle_of_a_search(cluster, tmp_path, undisturbed):
    whole, nodes = cluster
    executor = RayExecutor(
        Scripted, {"folder": str(tmp_path), "seconds": 0.3}, workers=4, address=whole.address, retries=2
    )
    seen = []

    def on_trial(trial):
        seen.append(trial)
        if len(seen) == 6:
            whole.remove_node(nodes[0], allow_graceful=False)

    trials = search(tmp_path, executor, parallel=PARALLEL, on_trial=on_trial)
    executor.close()
    assert found(trials) == undisturbed
    assert set(finished_evaluations(tmp_path)) == {key for _, _, key, _ in undisturbed}


def test_a_worker_killed_in_the_middle_of_an_evaluation(cluster, tmp_path, undisturbed):
    whole, _ = cluster
    executor = RayExecutor(Scripted, {"folder": str(tmp_path), "seconds": 0.3}, workers=3, address=whole.address)
    killed = []

    def on_trial(trial):
        running = {int(path.name.split(".")[1]) for path in tmp_path.glob("*.start")}
        if trial.number in (4, 9):
            pid = next(pid for pid in running if pid not in killed)
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    assert found(search(tmp_path, executor, parallel=PARALLEL, on_trial=on_trial)) == undisturbed
    executor.close()
    assert len(killed) == 2


@pytest.mark.parametrize("workers_later", [1, 3])
def test_a_killed_driver_resumes_to_the_same_measurements(tmp_path, undisturbed, workers_later):
    journal = tmp_path / "trials.jsonl"
    command = [sys.executable, str(HERE / "driver.py"), str(tmp_path)]
    with subprocess.Popen([*command, "2", str(PARALLEL)], start_new_session=True) as driver:
        while driver.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 8):
            time.sleep(0.05)
        driver.kill()
    assert driver.returncode == -signal.SIGKILL
    kept = [Policy.from_doc(json.loads(line)["policy"]) for line in journal.read_text().split("\n")[1:-1]]
    subprocess.run([*command, str(workers_later), str(PARALLEL)], check=True)
    rows = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert 8 <= len(kept) < len(rows)
    done = [(row["number"], row["source"], row["measurement"]["score"]) for row in rows]
    assert sorted(done) == [(number, source, score) for number, source, _, score in undisturbed]
    times = finished_evaluations(tmp_path)
    assert {times[policy.key] for policy in kept} == {1}
    assert set(times) == {key for _, _, key, _ in undisturbed}


def measurements(folder):
    rows = (json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()[1:])
    return sorted((row["number"], row["source"], str({**row["measurement"], "seconds": 0})) for row in rows)


OPTIONS = ("cache.enabled=false", "search.parallel=3", "search.strategy=evolutionary", "evaluator.kind=bn")


def test_an_experiment_measures_the_same_with_workers(tmp_path):
    results = []
    for name, more in (("here", ()), ("workers", ("executor.kind=ray", "executor.workers=2"))):
        experiment = Experiment.load(QUICKSTART, overrides=(*OPTIONS, *more))
        folder, result = run_experiment(experiment, out=tmp_path / name)
        results.append((measurements(folder), result["answer"]["policy"], result["answer"]["test_score"]))
    assert results[0] == results[1]


def haq(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "haq", "search", str(QUICKSTART), *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def test_ctrl_c_keeps_what_is_measured_and_the_run_goes_on_with_other_workers(tmp_path):
    set_options = ["--no-cache", "--set", "search.max_trials=60", "--set", "search.strategy=random"]
    arguments = ["--out", str(tmp_path / "run"), *set_options]
    journal = tmp_path / "run" / "trials.jsonl"
    with haq(*arguments, "--workers", "2") as first:
        while first.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 12):
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGINT)
        message = first.communicate()[1]
    assert first.returncode == 130
    assert "Traceback" not in message
    assert message.strip().splitlines()[-1].startswith("haq: interrupted")
    begun = measurements(tmp_path / "run")
    with haq(*arguments, "--resume", "--workers", "1") as second:
        second.communicate()
    assert second.returncode == 0
    with haq("--out", str(tmp_path / "whole"), *set_options, "--set", "search.parallel=2") as whole:
        whole.communicate()
    assert measurements(tmp_path / "run") == measurements(tmp_path / "whole")
    assert set(begun) < set(measurements(tmp_path / "run"))


def test_no_trial_is_missing(undisturbed):
    assert [number for number, *_ in undisturbed] == list(range(TRIALS + 3))
