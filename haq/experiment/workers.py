"""An experiment's evaluator in Ray workers: model and data are sent once, each worker builds the same evaluator."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from haq.edges.user_code import load_reference
from haq.evaluate import Evaluator
from haq.execute import CachingExecutor, LocalExecutor, MeasurementCache, RayExecutor
from haq.experiment.config import ExperimentConfig
from haq.experiment.experiment import Experiment
from haq.experiment.measurement_key import code_version, measurement_context
from haq.experiment.shipping import Shipment, pack, unpack
from haq.quant.settings import QuantizationConfig
from haq.search.loop import Executor
from haq.values.errors import InputError
from haq.values.network import Network
from haq.values.rung import Rung


@dataclass(frozen=True)
class _Parcel:
    """What a worker gets. `contents` are the float model and the data."""

    config: ExperimentConfig
    folder: Path
    network: Network
    quantization: QuantizationConfig
    rung: str
    contents: Shipment
    versions: tuple[str, str]


def worker_count(config: ExperimentConfig) -> int:
    """How many policies are evaluated at once."""
    if config.executor.kind == "local":
        return 1
    return config.executor.workers or os.cpu_count() or 1


def worker_threads(config: ExperimentConfig) -> int:
    """Torch threads of each worker: the experiment's, else its share of the processors."""
    cpus = config.executor.cpus_per_worker
    if cpus is None and config.executor.address is None:
        cpus = (os.cpu_count() or 1) / worker_count(config)
    return config.threads or max(int(cpus or 1), 1)


def worker_device(config: ExperimentConfig) -> str:
    """Where workers compute: with `auto`, on the GPU if they reserve one."""
    if config.evaluator.device != "auto":
        return config.evaluator.device
    return "cuda" if config.executor.gpus_per_worker else "cpu"


@contextmanager
def open_executor(
    experiment: Experiment, *, rung: str | None = None, note: Callable[[str], None] = lambda text: None
) -> Iterator[Executor]:
    """Who evaluates policies on the search split, as the experiment asks for, behind the cache; closed at the end.

    Args:
        experiment: whose evaluator.
        rung: of the ladder; default: the first.
        note: told of the cache, once at the end or when it cannot be written.
    """
    config = experiment.config
    rung = rung or config.evaluator.rungs[0]
    local = config.executor.kind == "local"
    executor: Executor = (
        LocalExecutor(experiment.evaluator("search", rung=rung)) if local else ray_executor(experiment, rung=rung)
    )
    caching = None
    if (folder := experiment.cache_folder) is not None:
        threads, device = (None, None) if local else (worker_threads(config), worker_device(config))
        context = measurement_context(experiment, rung=rung, threads=threads, device=device)
        executor = caching = CachingExecutor(executor, MeasurementCache(folder, context, on_error=note))
    with closing(executor):
        yield executor
    if caching is not None and caching.hits:
        note(f"{caching.hits} measurements came from the cache in {experiment.cache_folder}")


def ray_executor(experiment: Experiment, *, rung: str) -> RayExecutor:
    """The executor that the experiment's `executor` section describes, for a rung of its ladder.

    Raises:
        InputError: see `RayExecutor`; or the model or the data cannot be pickled.
    """
    config = experiment.config
    parcel = _Parcel(
        config.model_copy(
            update={
                "threads": worker_threads(config),
                "evaluator": config.evaluator.model_copy(update={"device": worker_device(config)}),
            }
        ),
        experiment.folder.resolve(),
        experiment.network,
        experiment.quantization,
        rung,
        pack((experiment.model, experiment.data)),
        _versions(),
    )
    return RayExecutor(
        search_evaluator,
        parcel,
        workers=worker_count(config),
        address=config.executor.address,
        cpus_per_worker=config.executor.cpus_per_worker or 1.0,
        gpus_per_worker=config.executor.gpus_per_worker,
        time_limit=config.executor.time_limit,
        retries=config.executor.retries,
        helpers=_helpers(config, rung),
    )


def _helpers(config: ExperimentConfig, rung: str) -> float:
    """Processors of the group that trains a policy; the worker that started it waits meanwhile."""
    qat = config.evaluator.qat
    if qat is None or qat.data_parallel == 1 or not Rung(rung).tunes:
        return 0.0
    return qat.data_parallel * (config.executor.cpus_per_worker or 1.0)


def search_evaluator(parcel: _Parcel) -> Evaluator:
    """In a worker: the evaluator that the experiment has in the driver, over the arrays as they lie in shared memory.

    Raises:
        InputError: the worker has other releases of `haq` or torch than the driver.
    """
    if parcel.versions != _versions():
        raise InputError(
            f"a worker has haq {_versions()[0]} and torch {_versions()[1]}, the driver has {parcel.versions[0]} and "
            f"{parcel.versions[1]}; install the same on every node"
        )
    for section in (parcel.config.model, parcel.config.data):
        if section.factory is not None:  # brings the user's modules onto the path before their classes are unpickled
            load_reference(section.factory, key="factory", folder=parcel.folder)
    model, data = unpack(parcel.contents)
    if Rung(parcel.rung).trains:
        model = copy.deepcopy(model)  # what is trained must be memory of its own
    experiment = Experiment(parcel.config, folder=parcel.folder)
    experiment.adopt({"model": model, "data": data, "network": parcel.network, "quantization": parcel.quantization})
    return experiment.evaluator("search", rung=parcel.rung)


def _versions() -> tuple[str, str]:
    return code_version(), torch.__version__
