"""The keys of `[executor]`: what is refused, and what each worker gets."""

from pathlib import Path

import pytest

from haq import Experiment, InputError
from haq.experiment.workers import worker_count, worker_threads

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"


def config(*overrides):
    return Experiment.load(QUICKSTART, overrides=overrides).config


@pytest.mark.parametrize(
    "override",
    ["workers=2", "time_limit=1.0", "address='auto'", "gpus_per_worker=0.5", "retries=1", "cpus_per_worker=1"],
)
def test_an_option_of_workers_without_workers_is_refused(override):
    with pytest.raises(InputError, match=r"executor: \w+: needs kind = 'ray'"):
        config(f"executor.{override}")


@pytest.mark.parametrize("override", ["workers=0", "time_limit=0", "gpus_per_worker=-1", "kind='spark'", "cpus=1"])
def test_a_senseless_value_is_refused(override):
    with pytest.raises(InputError, match=r"executor"):
        config("executor.kind='ray'", f"executor.{override}")


def test_threads_are_the_experiments_else_the_workers_share(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    ray = ("executor.kind='ray'", "executor.workers=2")
    assert worker_threads(config(*ray)) == 1  # the experiment says so
    free = config(*ray).model_copy(update={"threads": None})
    assert (worker_count(free), worker_threads(free)) == (2, 4)
    reserved = config(*ray, "executor.cpus_per_worker=3").model_copy(update={"threads": None})
    assert worker_threads(reserved) == 3
    remote = config(*ray, "executor.address='auto'").model_copy(update={"threads": None})
    assert worker_threads(remote) == 1
    assert worker_count(config()) == 1
