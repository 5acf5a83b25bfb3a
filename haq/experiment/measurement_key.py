"""What a measurement depends on beside the policy: the key of the cache.

A cached measurement is what would be measured: beside weights, data and settings the key has the float model's own
score and loss, the source of `haq`'s quantizers and evaluators, that of the user's model, metric and loss, and whatever
changes the last bits of a sum (threads, processor, device, release of torch).
"""

from __future__ import annotations

import hashlib
import inspect
import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from haq.experiment.experiment import Experiment
from haq.training.settings import QATConfig
from haq.values.rung import Rung

_PACKAGE = Path(__file__).parents[1]
_MEASURING = ("quant", "training", "evaluate", "transforms", "repair", "zoo")
"""The rooms whose code decides what a policy measures; edited, they make other measurements."""


def measurement_context(
    experiment: Experiment, *, rung: str | None = None, threads: int | None = None, device: str | None = None
) -> dict[str, Any]:
    """What a measurement on the search split depends on beside the policy; scores the float model.

    Args:
        experiment: whose measurements.
        rung: of the ladder; default: the first.
        threads: of whoever evaluates, where that is not this process.
        device: likewise.
    """
    config = experiment.config
    rung, qat = rung or config.evaluator.rungs[0], config.evaluator.qat or QATConfig()
    scoring = config.evaluator.model_dump(mode="json", exclude={"device", "kind", "ladder", "reduction", "qat"})
    floating = experiment.evaluator("search").float_measurement()
    own = [experiment.metric, experiment.loss, *filter(None, [experiment.training_step])]
    context: dict[str, Any] = {
        "model": config.model.model_dump(mode="json"),
        "hashes": experiment.hashes,
        "float": {"score": floating.score, **floating.details},
        "evaluator": {**scoring, "rung": rung},
        "quantization": experiment.quantization.model_dump(mode="json"),
        "layers": list(experiment.network.layer_names),
        "sources": source_digest([*own, *map(type, experiment.model.modules())]),
        "code": code_version(),
        "numerics": numerics(torch.device(device) if device else experiment.quantized.device, threads=threads),
    }
    if config.data.targets != "labels":
        context["targets"] = config.data.targets
    if not Rung(rung).trains:
        # Little is drawn at random without training: runs of several seeds share their measurements.
        drawn_by_repair = "adaround" in (Rung(rung).repair, *config.quantization.repairs)
        return {**context, "seed": config.seed} if drawn_by_repair else context
    # Joint training draws its policies from the space.
    space = experiment.space
    precisions = {name: [str(p) for p in choices] for name, choices in space.precisions.items()}
    drawn = {"space": precisions, "ties": space.ties, "activation_ties": space.activation_ties}
    jointly = Rung(rung).joint or qat.start == "shared"
    trained = {"qat": qat.model_dump(mode="json"), "seed": config.seed, "drawn": drawn if jointly else None}
    return {**context, **trained}


@cache
def code_version() -> str:
    """A hash of the source that measures: an edit of an evaluator is another evaluator."""
    digest = hashlib.sha256()
    for name in _MEASURING:
        for file in sorted((_PACKAGE / name).rglob("*.py")):
            digest.update(str(file.relative_to(_PACKAGE)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def source_digest(objects: Iterable[Any]) -> str:
    """A hash of the files that define these functions or classes; torch's and `haq`'s own are left out.

    What has no source file (a lambda typed into a console, a class of a C extension) counts by its name.
    """
    found: dict[str, bytes] = {}
    for value in objects:
        inner = inspect.unwrap(value)
        definition = inner if inspect.isclass(inner) or inspect.isroutine(inner) else type(inner)
        home = definition.__module__ or ""
        name = f"{home}.{definition.__qualname__}"
        if home.partition(".")[0] in ("torch", "haq"):
            continue
        try:
            found[name] = Path(inspect.getsourcefile(definition) or "").read_bytes()
        except (TypeError, OSError):
            found[name] = b""
    digest = hashlib.sha256()
    for name, content in sorted(found.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def numerics(device: torch.device, *, threads: int | None = None) -> dict[str, Any]:
    """What may change the last bits of a sum on `device`; `threads`: default, this process's."""
    result: dict[str, Any] = {"torch": torch.__version__, "device": device.type}
    if device.type == "cuda":
        # A driver may have no GPU where its workers have.
        name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else "of the workers"
        return result | {"gpu": name, "tf32": torch.backends.cuda.matmul.allow_tf32}
    return result | {
        "threads": threads or torch.get_num_threads(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
