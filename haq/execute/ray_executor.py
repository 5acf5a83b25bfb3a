"""Evaluations by Ray actors, on this machine or on a cluster: `pip install 'haq[ray]'`."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from haq.execute.outcome import failed, outcome
from haq.execute.ray_cluster import RayCluster, import_ray
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Measurement

Evaluate = Callable[[Policy], Measurement]
_START_SECONDS = 120.0
"""So long may pass without any worker before the search gives up."""
_FAILED_STARTS = 3
"""So many workers in a row, and the number of workers more, may die while they load what they need."""


class _Actor:
    """What runs in a worker: one evaluator, built once, kept."""

    def prepare(self, paths: list[str], build: bytes, payload: Any) -> None:
        """Build the evaluator. `paths` come first: what is to be unpickled may lie there."""
        import ray.cloudpickle

        sys.path += [path for path in paths if path not in sys.path]
        self._evaluate: Evaluate = ray.cloudpickle.loads(build)(payload)

    def evaluate(self, policy: Policy) -> Measurement:
        return outcome(self._evaluate, policy)


@dataclass(eq=False)
class _Worker:
    """An actor and what it does now: `policy` is `None` while it starts."""

    actor: Any
    policy: Policy | None = None
    deadline: float = math.inf


class RayExecutor:
    """Evaluates policies in actors of their own, several at once; results come as they are done.

    A worker that dies is replaced, wherever the cluster has room, and its policy is evaluated again, at most `retries`
    times; then, or past the time limit, the policy has failed, with the reason. Connects to `address`, or to the
    cluster that this process is connected to already, or starts one on this machine for as long as it is open.

    Args:
        build: called once in each worker, with `payload`; returns the evaluator.
        payload: put into the object store once; arrays in it are read there without copies, and may not be written.
        workers: how many actors.
        address: of a cluster, or `auto`.
        cpus_per_worker: what each reserves.
        gpus_per_worker: likewise, may be a fraction.
        time_limit: seconds for each evaluation.
        retries: how often a policy whose worker died is tried again.
        helpers: processors that each evaluation reserves beside its worker's, in a cluster started here.

    Raises:
        InputError: Ray is missing, the cluster cannot be reached, or not one worker fits in.
    """

    def __init__(
        self,
        build: Callable[[Any], Evaluate],
        payload: Any,
        *,
        workers: int,
        address: str | None = None,
        cpus_per_worker: float = 1.0,
        gpus_per_worker: float = 0.0,
        time_limit: float | None = None,
        retries: int = 2,
        helpers: float = 0.0,
    ) -> None:
        self._ray = import_ray()
        self._workers, self._time_limit, self._retries = workers, time_limit, retries
        self._needs = {"CPU": cpus_per_worker, "GPU": gpus_per_worker}
        self._queue: deque[Policy] = deque()
        self._idle: deque[_Worker] = deque()
        self._busy: dict[Any, _Worker] = {}
        """What is waited for -> the worker that does it; those that start are among them."""
        self._done: deque[tuple[Policy, Measurement]] = deque()
        self._deaths: Counter[str] = Counter()
        self._failed_starts, self._last_alive = 0, time.monotonic()
        self._cluster = RayCluster(self._ray, address, cpus=math.ceil(workers * (cpus_per_worker + helpers)))
        try:
            self._check_room()
            self._build, self._payload = self._ray.cloudpickle.dumps(build), self._ray.put(payload)
            self._actor = self._ray.remote(_Actor).options(
                num_cpus=cpus_per_worker, num_gpus=gpus_per_worker, max_restarts=0, scheduling_strategy="SPREAD"
            )
            for _ in range(workers):
                self._start()
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> int:
        return self._workers

    def submit(self, policy: Policy) -> None:
        """Give `policy` to an idle worker, or queue it."""
        self._queue.append(policy)
        self._assign()

    def next_completed(self) -> tuple[Policy, Measurement]:
        """Whichever policy is done first.

        Raises:
            ValueError: nothing was submitted.
            InputError: what the evaluator says is wrong with the experiment; or no worker can be started.
        """
        while not self._done:
            if not self._queue and all(worker.policy is None for worker in self._busy.values()):
                raise ValueError("no policy is waiting; submit one first")
            self._wait(block=True)
        return self._done.popleft()

    def finished(self) -> list[tuple[Policy, Measurement]]:
        """What is done by now, without waiting."""
        self._wait(block=False)
        done, self._done = list(self._done), deque()
        return done

    def wait_for_workers(self) -> None:
        """Wait until every worker has built its evaluator. A search need not: those that are up begin.

        Raises:
            InputError: a worker cannot be started.
        """
        while any(worker.policy is None for worker in self._busy.values()):
            self._wait(block=True)

    def close(self) -> None:
        """Stop all workers, and the cluster if it was started here."""
        for worker in (*self._idle, *self._busy.values()):
            with suppress(Exception):
                self._ray.kill(worker.actor)
        self._idle.clear()
        self._busy.clear()
        self._cluster.close()

    def _start(self) -> None:
        worker = _Worker(self._actor.remote())
        self._busy[worker.actor.prepare.remote(list(sys.path), self._build, self._payload)] = worker

    def _assign(self) -> None:
        while self._idle and self._queue:
            worker, policy = self._idle.popleft(), self._queue.popleft()
            worker.policy = policy
            worker.deadline = math.inf if self._time_limit is None else time.monotonic() + self._time_limit
            self._busy[worker.actor.evaluate.remote(policy)] = worker

    def _wait(self, *, block: bool) -> None:
        """Settle everything that is done; with `block`, wait for something to happen first."""
        timeout = self._patience() if block else 0.0
        ready, rest = self._ray.wait(list(self._busy), num_returns=1, timeout=timeout) if self._busy else ([], [])
        if ready and rest:
            ready += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for reference in ready:
            self._settle(self._busy.pop(reference), reference)
        self._enforce_time_limit()
        self._assign()
        if self._idle or any(worker.policy is not None for worker in self._busy.values()):
            self._last_alive = time.monotonic()
        elif time.monotonic() - self._last_alive > _START_SECONDS:
            raise InputError(f"no worker could be started in {_START_SECONDS:.0f} s: {self._room()}")

    def _patience(self) -> float:
        """Seconds until a time limit is reached, or until starting workers has taken too long."""
        nearest = min((worker.deadline for worker in self._busy.values()), default=math.inf)
        return min(max(nearest - time.monotonic(), 0.0), _START_SECONDS)

    def _settle(self, worker: _Worker, reference: Any) -> None:
        errors = self._ray.exceptions
        try:
            measurement = self._ray.get(reference)
        except errors.RayTaskError as error:
            raise getattr(error, "cause", error) from None
        except errors.OutOfMemoryError:
            self._lost(worker, "Ray ended it: the machine ran out of memory", retry=False)
        except errors.RayError as error:
            lines = str(error).splitlines() or [type(error).__name__]
            self._lost(worker, lines[0].rstrip(":."))
        else:
            if worker.policy is None:
                self._failed_starts = 0
            else:
                self._done.append((worker.policy, measurement))
            worker.policy, worker.deadline = None, math.inf
            self._idle.append(worker)

    def _lost(self, worker: _Worker, reason: str, *, retry: bool = True) -> None:
        """A worker died. Its policy goes to another one, unless it has cost too many already."""
        policy = worker.policy
        if policy is None:
            self._failed_starts += 1
            if self._failed_starts > _FAILED_STARTS + self._workers:
                raise InputError(
                    f"workers die while they load the model and the data: {reason}; is there memory for all?"
                )
        else:
            self._deaths[policy.key] += 1
            if retry and self._deaths[policy.key] <= self._retries:
                self._queue.appendleft(policy)
            else:
                times = f"its worker died {self._deaths[policy.key]} times, out of memory? " if retry else ""
                self._done.append((policy, failed(f"{times}{reason}")))
        self._start()

    def _enforce_time_limit(self) -> None:
        now = time.monotonic()
        for reference, worker in list(self._busy.items()):
            if worker.policy is not None and worker.deadline <= now:
                del self._busy[reference]
                self._ray.kill(worker.actor)
                limit = self._time_limit or 0.0
                reason = f"took longer than executor.time_limit = {limit:g} s"
                self._done.append((worker.policy, failed(reason, seconds=limit)))
                self._start()

    def _check_room(self) -> None:
        has = self._ray.cluster_resources()
        if any(has.get(name, 0.0) < needed for name, needed in self._needs.items()):
            raise InputError(f"no worker fits into the cluster: {self._room()}")

    def _room(self) -> str:
        has = self._ray.cluster_resources()
        needs = ", ".join(f"{needed:g} {name}" for name, needed in self._needs.items() if needed)
        there = ", ".join(f"{has.get(name, 0.0):g} {name}" for name in self._needs)
        return f"each needs {needs}, the cluster has {there}; change executor.cpus_per_worker or .gpus_per_worker"
