"""What an experiment's measurements depend on beside the policy: what the cache knows them by."""

from __future__ import annotations

from typing import Any

import torch

from haq.config import QATConfig
from haq.evaluate.context import code_version, numerics, source_digest
from haq.experiment import Experiment


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
    if rung in ("ptq", "bn"):
        # Nothing is drawn at random without training: runs of several seeds share their measurements.
        return context
    # Joint training draws its policies from the space.
    space = experiment.space
    precisions = {name: [str(p) for p in choices] for name, choices in space.precisions.items()}
    drawn = {"space": precisions, "ties": space.ties, "activation_ties": space.activation_ties}
    jointly = rung == "shared" or qat.start == "shared"
    trained = {"qat": qat.model_dump(mode="json"), "seed": config.seed, "drawn": drawn if jointly else None}
    return {**context, **trained}
