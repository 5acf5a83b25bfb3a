"""Evaluations in Ray actors: the same measurements, and every failure is one policy's or one line."""

import math
import subprocess
import sys

import evaluators
import pytest
from evaluators import POLICIES, Scripted, score

from haq.execute import LocalExecutor, RayExecutor
from haq.values.errors import InputError

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster():
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def run(executor, policies):
    try:
        for policy in policies:
            executor.submit(policy)
        return dict(executor.next_completed() for _ in policies)
    finally:
        executor.close()


def with_ray(tmp_path, policies, *, odd=None, workers=2, **options):
    keys = {POLICIES[number].key: what for number, what in (odd or {}).items()}
    payload = {"folder": str(tmp_path), "odd": keys}
    return run(RayExecutor(Scripted, payload, workers=workers, **options), policies)


def test_the_same_measurements_as_in_this_process(cluster, tmp_path):
    here = run(LocalExecutor(Scripted({"folder": tmp_path})), POLICIES)
    assert with_ray(tmp_path, POLICIES) == here


@pytest.mark.parametrize("what", ["nan", "memory"])
def test_what_fails_in_here_fails_alike_in_a_worker(cluster, tmp_path, what):
    odd = {1: what}
    here = run(LocalExecutor(Scripted({"folder": tmp_path, "odd": {POLICIES[1].key: what}})), POLICIES[:3])
    there = with_ray(tmp_path, POLICIES[:3], odd=odd)
    reasons = {"nan": "the score is nan", "memory": "out of memory: no more"}
    for done in (here, there):
        assert done[POLICIES[1]].error == reasons[what]
        assert [done[policy].score for policy in (POLICIES[0], POLICIES[2])] == [score(POLICIES[0]), score(POLICIES[2])]


def test_a_killed_workers_policy_is_evaluated_again(cluster, tmp_path):
    done = with_ray(tmp_path, POLICIES[:4], odd={0: "kill once", 2: "kill once"})
    assert {policy: measurement.score for policy, measurement in done.items()} == {p: score(p) for p in POLICIES[:4]}


def test_a_policy_that_kills_every_worker_has_failed(cluster, tmp_path):
    done = with_ray(tmp_path, POLICIES[:3], odd={1: "kill"}, retries=1)
    assert "its worker died 2 times" in done[POLICIES[1]].error
    assert math.isnan(done[POLICIES[1]].score)
    assert done[POLICIES[2]].score == score(POLICIES[2])
    assert len(list(tmp_path.glob(f"{POLICIES[1].key}.*.start"))) == 2


def test_an_evaluation_that_takes_too_long_has_failed(cluster, tmp_path):
    done = with_ray(tmp_path, POLICIES[:3], odd={0: "hang"}, time_limit=2.0)
    assert done[POLICIES[0]].error == "took longer than executor.time_limit = 2 s"
    assert [done[policy].ok for policy in POLICIES[:3]] == [False, True, True]


def test_a_mistake_of_the_user_ends_the_search(cluster, tmp_path):
    with pytest.raises(InputError, match="metric: is wrong"):
        with_ray(tmp_path, POLICIES[:2], odd={0: "input"})


def failing_build(payload):
    raise InputError("model.factory: is wrong")


def test_a_worker_that_cannot_be_built_says_why(cluster):
    with pytest.raises(InputError, match="factory: is wrong"):
        run(RayExecutor(failing_build, None, workers=1), POLICIES[:1])


def test_a_worker_larger_than_the_cluster_is_refused(cluster, tmp_path):
    with pytest.raises(InputError, match="each needs 64 CPU, the cluster has 2 CPU"):
        with_ray(tmp_path, POLICIES[:1], cpus_per_worker=64)


def test_waiting_for_nothing_is_an_error(cluster, tmp_path):
    executor = RayExecutor(Scripted, {"folder": str(tmp_path)}, workers=1)
    with pytest.raises(ValueError, match="no policy is waiting"):
        executor.next_completed()
    executor.close()


def test_what_is_done_can_be_had_without_waiting(cluster, tmp_path):
    executor = RayExecutor(Scripted, {"folder": str(tmp_path), "odd": {POLICIES[1].key: "hang"}}, workers=2)
    for policy in POLICIES[:2]:
        executor.submit(policy)
    first = executor.next_completed()
    assert (first[0], executor.finished()) == (POLICIES[0], [])
    executor.close()


@pytest.mark.parametrize("expression", ["import haq.commands.cli, haq.runs.search", "import haq.execute"])
def test_ray_is_not_imported_unasked(expression):
    code = f"{expression}; import sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_evaluators_of_workers_import_no_torch():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import evaluators; sys.exit('torch' in sys.modules)"
    folder = str(evaluators.__file__).rpartition("/")[0]
    assert subprocess.run([sys.executable, "-c", code, folder], check=False).returncode == 0
