"""A group of workers that train together, by Ray Train: `pip install 'haq[ray]'`."""

from __future__ import annotations

import atexit
import math
import pickle
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from haq.execute.ray_cluster import RayCluster, import_ray
from haq.values.errors import InputError

_MEET_SECONDS = 1800


class _Keeper:
    """An actor: the workers' checkpoints, and what came out. It outlives the workers, and needs no shared disk."""

    def __init__(self, workers: int) -> None:
        self._states: list[dict[int, bytes]] = [{} for _ in range(workers)]
        self._outcome: tuple[bool, bytes] | None = None
        self._starts = 0

    def save(self, rank: int, step: int, state: bytes) -> None:
        """Keep the state of a worker, and the one before: somebody may not have come so far."""
        kept = self._states[rank]
        kept[step] = state
        for old in sorted(kept)[:-2]:
            del kept[old]

    def load(self, rank: int) -> bytes | None:
        """The worker's state at the last step that all have kept."""
        common = set.intersection(*map(set, self._states))
        return self._states[rank][max(common)] if common else None

    def end(self, ok: bool, outcome: bytes) -> None:
        """The first word counts."""
        self._outcome = self._outcome or (ok, outcome)

    def outcome(self) -> tuple[bool, bytes] | None:
        """Whether it went well, and the pickled result or error; `None`: not done."""
        return self._outcome

    def begin(self) -> None:
        """The group starts, for the first time or again."""
        self._starts += 1

    def starts(self) -> int:
        """How often the group has started."""
        return self._starts


class _Store:
    """A worker's side of the keeper."""

    def __init__(self, ray: Any, keeper: Any, rank: int) -> None:
        self._ray, self._keeper, self._rank = ray, keeper, rank

    def save(self, step: int, state: Any) -> None:
        self._ray.get(self._keeper.save.remote(self._rank, step, self._ray.cloudpickle.dumps(state)))

    def load(self) -> Any | None:
        state = self._ray.get(self._keeper.load.remote(self._rank))
        return None if state is None else self._ray.cloudpickle.loads(state)


def _work(config: dict[str, Any]) -> None:
    """In a worker of Ray Train, its process group joined."""
    import ray
    import ray.cloudpickle
    import ray.train

    keeper, rank = config["keeper"], ray.train.get_context().get_world_rank()
    if ray.get(keeper.outcome.remote()) is not None:  # somebody found what no new start mends
        return
    if rank == 0:
        ray.get(keeper.begin.remote())
    sys.path += [path for path in config["paths"] if path not in sys.path]
    function, payload = ray.cloudpickle.loads(config["work"])
    try:
        result = function(payload, _Store(ray, keeper, rank))
    except InputError as error:
        ray.get(keeper.end.remote(False, pickle.dumps(error)))
        raise  # ends the others, who wait for this one
    if rank == 0:
        ray.get(keeper.end.remote(True, pickle.dumps(result)))


class RayGroup:
    """Runs a function in `workers` processes that have joined one `torch.distributed` group: gloo, or NCCL on GPUs.

    A worker that dies ends the group; Ray Train starts it anew, at most `retries` times, and it goes on from the last
    checkpoint that all had kept. Uses the cluster that this process is connected to, else that at `address`, else one
    of its own.

    Args:
        workers: how many.
        address: of a cluster, or `auto`.
        cpus_per_worker: what each reserves.
        gpus_per_worker: likewise.
        retries: how often the group starts anew.

    Attributes:
        starts: how often the last group started.
    """

    def __init__(
        self,
        *,
        workers: int,
        address: str | None = None,
        cpus_per_worker: float = 1.0,
        gpus_per_worker: float = 0.0,
        retries: int = 2,
    ) -> None:
        self._workers, self._address, self._retries = workers, address, retries
        self._needs = {"CPU": cpus_per_worker} | ({"GPU": gpus_per_worker} if gpus_per_worker else {})
        self._cluster: RayCluster | None = None
        self.starts = 0

    def run(self, function: Callable[[Any, Any], Any], payload: Any) -> Any:
        """What `function(payload, store)` returned in the first worker; `store` is each worker's own.

        Raises:
            InputError: Ray is missing, the group does not fit into the cluster, or a worker raised it.
            RuntimeError: the group died more often than it may start over.
        """
        ray = self._connected()
        self._check_room(ray)
        work = ray.put(ray.cloudpickle.dumps((function, payload)))
        keeper = ray.remote(_Keeper).options(num_cpus=0).remote(self._workers)
        try:
            died = self._fit(ray, keeper, ray.get(work))
            self.starts = ray.get(keeper.starts.remote())
            outcome = ray.get(keeper.outcome.remote())
        finally:
            ray.kill(keeper)
        if outcome is None:
            raise RuntimeError(f"the group of {self._workers} workers died {self.starts} times: {died}")
        value = pickle.loads(outcome[1])
        if not outcome[0]:
            raise value
        return value

    def _connected(self) -> Any:
        ray = import_ray()
        if self._cluster is None or not ray.is_initialized():
            cpus = math.ceil(self._workers * self._needs["CPU"])
            self._cluster = RayCluster(ray, self._address, cpus=cpus)
            atexit.register(self._cluster.close)
        return ray

    def _fit(self, ray: Any, keeper: Any, work: bytes) -> str:
        """Run the group; says why it died, where it did."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        gpu = "GPU" in self._needs
        with tempfile.TemporaryDirectory(prefix="haq-") as folder:
            trainer = TorchTrainer(
                _work,
                train_loop_config={"keeper": keeper, "work": work, "paths": list(sys.path)},
                torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=_MEET_SECONDS),
                scaling_config=ScalingConfig(
                    num_workers=self._workers, use_gpu=gpu, resources_per_worker=dict(self._needs)
                ),
                run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=self._retries)),
            )
            try:
                trainer.fit()
            except Exception as error:  # Ray Train has several, and wraps what workers raise
                return (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return ""

    def _check_room(self, ray: Any) -> None:
        has = ray.cluster_resources()
        for name, each in self._needs.items():
            if has.get(name, 0.0) < self._workers * each:
                raise InputError(
                    f"evaluator.qat.data_parallel = {self._workers} needs {self._workers * each:g} {name}, the cluster "
                    f"has {has.get(name, 0.0):g}; take fewer workers or a larger cluster"
                )
