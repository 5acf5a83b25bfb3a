"""What a service has computed aside: a process of its own at a low priority, so that answers do not wait.

`python -m haq.serve.worker JOB.json` writes `result.json` beside the job: what came out, or `failed`, one line.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from haq.adaptive.family import DOCUMENT, load_states
from haq.adaptive.sessions import load_onnx, save_sessions
from haq.edges.documents import read_json, write_json
from haq.experiment.experiment import Experiment
from haq.quant.nested import tensors_in
from haq.runs.adapt import stored_experiment
from haq.serve.drift import Observer
from haq.serve.ranges import judged, reference, renewed
from haq.serve.reservoir import Sample, batches, load_samples
from haq.values.errors import InputError, shortened

RESULT, STATISTICS = "result.json", "statistics.npy"
_MOST = 1024
"""Samples of the search split that statistics are taken of."""


def experiment_for(family: Path, experiment: Path | None, overrides: Sequence[str]) -> Experiment:
    """The experiment that gives a service model and data.

    Raises:
        InputError: the family's own runs code, or there is none.
    """
    return Experiment.load(experiment, overrides=list(overrides)) if experiment else stored_experiment(family)


def prepare(job: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Statistics of the search split, which no member was trained on: what drift is told from."""
    experiment = _experiment(job)
    family = load_onnx(job["family"])
    inputs = experiment.given_data.search.head(_MOST).inputs
    tensors = list(tensors_in(inputs))
    names = [name for name, _, _ in family.inputs]
    values = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(names, tensors, strict=True))
    count = len(tensors[0])
    samples: list[Sample] = [{name: values[name][n : n + 1] for name in names} for n in range(count)]
    np.save(out / STATISTICS, Observer(Path(job["current"]), len(family.members))(samples))
    return {"samples": count}


def calibrate(job: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """New ranges for all members, judged on every second sample, of which they saw nothing."""
    experiment, samples = _experiment(job), load_samples(Path(job["samples"]))
    learn, held = batches(samples[::2]), batches(samples[1::2])
    states = load_states(job["family"], experiment.model)
    example = experiment.given_data.train.head(2).inputs
    seen = [_as_model_inputs(batch, example) for batch in learn]
    fresh = [renewed(experiment.model, state, seen) for state in states]
    save_sessions(out, experiment.model, fresh, example)
    shutil.copyfile(Path(job["family"]) / DOCUMENT, out / DOCUMENT)
    np.save(out / STATISTICS, Observer(out, len(states))(samples))
    wanted = reference(experiment.model, states[-1], [_as_model_inputs(batch, example) for batch in held])
    return _compared(out, Path(job["current"]), wanted, held)


def judge(job: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Whether `current` is better than `before` on samples that came since."""
    experiment, samples = _experiment(job), load_samples(Path(job["samples"]))
    held = batches(samples)
    states = load_states(job["family"], experiment.model)
    example = experiment.given_data.train.head(2).inputs
    wanted = reference(experiment.model, states[-1], [_as_model_inputs(batch, example) for batch in held])
    return _compared(Path(job["before"]), Path(job["current"]), wanted, held)


def _compared(one: Path, other: Path, wanted: Sequence[Tensor], held: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    count = sum(len(output) for output in wanted)
    new, old = judged(one, wanted, held), judged(other, wanted, held)
    return {
        "better": new.better_than(old, count),
        "error": new.error,
        "error_now": old.error,
        "agreement": new.agreement,
        "agreement_now": old.agreement,
        "held_back": count,
    }


def _experiment(job: Mapping[str, Any]) -> Experiment:
    given = job.get("experiment")
    made = experiment_for(Path(job["family"]), Path(given) if given else None, job.get("overrides", []))
    evaluator = made.config.evaluator.model_copy(update={"device": "cpu"})
    return made.at(made.config.model_copy(update={"evaluator": evaluator}))


def _as_model_inputs(batch: Mapping[str, Tensor], example: Any) -> Any:
    """Inputs by ONNX name as the torch model takes them."""
    if isinstance(example, Mapping):
        return dict(batch)
    values = tuple(batch.values())
    return values if isinstance(example, tuple | list) else values[0]


_WORK = {"prepare": prepare, "calibrate": calibrate, "judge": judge}


def main(path: Path) -> None:
    """Do the job in the file `path`."""
    if hasattr(os, "nice"):
        os.nice(10)
    torch.set_num_threads(1)
    out = path.parent
    try:
        job = read_json(path)
        found = _WORK[job["work"]](job, out)
    except InputError as error:
        found = {"failed": str(error)}
    except Exception as error:  # the service goes on, and its log says why this did not
        found = {"failed": f"{type(error).__name__}: {shortened(str(error))}"}
    write_json(out / RESULT, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
