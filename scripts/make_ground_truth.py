"""Measure every policy of a small experiment: `python scripts/make_ground_truth.py EXPERIMENT.toml`.

Writes `EXPERIMENT.json` (problem, sensitivities by every metric, provenance) and `EXPERIMENT.npz` (score and loss of
each policy on the search and on the test split), which `haq bench regret` runs the strategies on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

import numpy as np

from haq.bench.truth import SPLITS, GroundTruth
from haq.experiment.experiment import Experiment
from haq.runs.result import versions
from haq.sensitivity import METRICS

MOST = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--out", type=Path, help="JSON file; default: the experiment's name with .json")
    args = parser.parse_args()
    experiment = Experiment.load(args.experiment)
    experiment.check()
    problem = experiment.problem(experiment.sensitivity())
    shape = tuple(problem.tables.sizes)
    if np.prod(shape) > MOST:
        parser.error(f"the space has {np.prod(shape):,} policies; at most {MOST:,} are measured: allow fewer formats")
    sensitivities = {}
    for metric in METRICS:
        table = Experiment.load(args.experiment, overrides=[f"sensitivity.metric={metric!r}"]).sensitivity()
        sensitivities[metric] = {
            layer: [table.of(layer, choice) for choice in problem.choices(layer)] for layer in problem.layers
        }
    evaluators = {split: experiment.evaluator(split) for split in SPLITS}
    scores = {split: np.full(shape, np.nan) for split in SPLITS}
    losses = {split: np.full(shape, np.nan) for split in SPLITS}
    began = time.perf_counter()
    for done, index in enumerate(np.ndindex(shape)):
        policy = problem.policy(np.array(index))
        for split, evaluator in evaluators.items():
            measurement = evaluator(policy)
            if not measurement.ok:
                raise SystemExit(f"policy {dict(policy)}: {measurement.error}")
            scores[split][index], losses[split][index] = measurement.score, measurement.details["loss"]
        if done % 1000 == 0:
            print(f"{done} of {np.prod(shape)} policies, {time.perf_counter() - began:.0f} s", flush=True)
    floats = {split: evaluator.float_measurement() for split, evaluator in evaluators.items()}
    about = {
        "fidelity": evaluators["search"].fidelity,
        "metric": experiment.config.evaluator.metric,
        "float": {split: {"score": m.score, **m.details} for split, m in floats.items()},
        "samples": {split: len(getattr(experiment.data, split)) for split in SPLITS},
        "provenance": {
            "command": shlex.join(["python", "scripts/make_ground_truth.py", *sys.argv[1:]]),
            "experiment": experiment.config.model_dump(mode="json"),
            "hashes": experiment.hashes,
            "profile": experiment.profile.digest,
            "versions": versions(),
            "seconds": time.perf_counter() - began,
        },
    }
    truth = GroundTruth(experiment.config.name, problem, sensitivities, scores, losses, about)
    truth.save(args.out or args.experiment.with_suffix(".json"))


if __name__ == "__main__":
    main()
