"""A ground truth: every policy of a small trained network, measured. `scripts/make_ground_truth.py` makes one."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from haq.edges.documents import LARGEST_FILE, check_file, read_json, write_bytes, write_json
from haq.problem.problem import Problem
from haq.problem.tables import Floats, Ints
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Measurement

SPLITS = ("search", "test")
_DAMAGES = (OSError, ValueError, TypeError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class GroundTruth:
    """A problem and what each of its policies measures.

    Attributes:
        name: of the table.
        problem: costs, and the sensitivities of the metric that the experiment named.
        sensitivities: metric -> layer -> predicted loss increase per choice, in the order of `problem.choices(layer)`.
        scores: split -> score per policy, `[sizes of the decision groups ...]`.
        losses: split -> loss per policy, likewise.
        about: fidelity, metric, float model's scores, samples, provenance.
    """

    name: str
    problem: Problem
    sensitivities: Mapping[str, Mapping[str, Sequence[float]]]
    scores: Mapping[str, Floats]
    losses: Mapping[str, Floats]
    about: Mapping[str, Any]

    @cached_property
    def assignments(self) -> Ints:
        """Every assignment, `[N, G]`, in the order of the flattened tables."""
        return np.argwhere(np.ones(tuple(self.problem.tables.sizes), dtype=np.bool_))

    def with_metric(self, metric: str) -> Problem:
        """The problem with the sensitivities of another metric.

        Raises:
            InputError: the table has no such metric.
        """
        if metric not in self.sensitivities:
            raise InputError(f"{self.name}: no sensitivities by {metric!r}; it has {', '.join(self.sensitivities)}")
        document = self.problem.to_doc()
        for layer in document["layers"]:
            for choice, value in zip(layer["choices"], self.sensitivities[metric][layer["name"]], strict=True):
                choice["sensitivity"] = value
        return Problem.from_doc(document)

    def measure(self, policy: Policy, split: str = "search") -> Measurement:
        """What the evaluator measured for `policy`; the loss is among the details."""
        index = tuple(self.problem.assignment(policy))
        details = {"loss": float(self.losses[split][index])}
        return Measurement(float(self.scores[split][index]), self.about["fidelity"], details=details)

    def save(self, path: Path) -> None:
        """Write `path` (JSON: problem, sensitivities, provenance) and the measurements beside it (`.npz`)."""
        from io import BytesIO

        document = {"schema_version": 1, "name": self.name, **self.about, "sensitivities": self.sensitivities}
        arrays = {f"score_{split}": self.scores[split].astype(np.float32) for split in SPLITS}
        arrays |= {f"loss_{split}": self.losses[split].astype(np.float32) for split in SPLITS}
        stream = BytesIO()
        np.savez_compressed(stream, allow_pickle=False, **arrays)
        write_bytes(path.with_suffix(".npz"), stream.getvalue())
        write_json(path, document | {"problem": self.problem.to_doc()})


def load_ground_truth(path: str | Path) -> GroundTruth:
    """Read a ground truth from its JSON file and the `.npz` file beside it.

    Raises:
        InputError: missing, damaged, or measurements of another problem.
    """
    file = Path(path)
    document = read_json(file)
    arrays = _arrays(file.with_suffix(".npz"))
    try:
        problem = Problem.from_doc(document["problem"])
        name, sensitivities = document["name"], document["sensitivities"]
        _check_sensitivities(sensitivities, problem)
        about = {key: document[key] for key in ("fidelity", "metric", "float", "samples", "provenance")}
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: not a ground truth, lacks {error}; make it with make_ground_truth.py") from error
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error
    shape = tuple(problem.tables.sizes)
    for key in (f"{kind}_{split}" for kind in ("score", "loss") for split in SPLITS):
        if key not in arrays or arrays[key].shape != shape:
            found = arrays[key].shape if key in arrays else "missing"
            raise InputError(f"{file.with_suffix('.npz')}: {key} is {found}, the problem has policies {shape}")
    scores = {split: arrays[f"score_{split}"].astype(np.float64) for split in SPLITS}
    losses = {split: arrays[f"loss_{split}"].astype(np.float64) for split in SPLITS}
    return GroundTruth(name, problem, sensitivities, scores, losses, about)


def _check_sensitivities(found: Any, problem: Problem) -> None:
    """Raise unless every metric has a number for each choice of each layer.

    Raises:
        ValueError: names the metric and the layer.
    """
    if not isinstance(found, Mapping):
        raise ValueError("sensitivities: expected an object: metric -> layer -> values")
    for metric, rows in found.items():
        for layer in problem.layers:
            row = rows.get(layer) if isinstance(rows, Mapping) else None
            if not isinstance(row, list) or len(row) != len(problem.choices(layer)) or not all(map(_is_number, row)):
                raise ValueError(f"sensitivities.{metric}.{layer}: expected a number for each choice of the layer")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _arrays(path: Path) -> dict[str, Floats]:
    try:
        check_file(path)
    except InputError as error:
        raise InputError(f"{error}; it belongs beside the JSON file of the ground truth") from error
    try:
        with zipfile.ZipFile(path) as archive:
            if (unpacked := sum(entry.file_size for entry in archive.infolist())) > LARGEST_FILE:
                raise ValueError(f"unpacks to {unpacked} bytes, more than is read")
        with np.load(path, allow_pickle=False) as file:
            return {key: np.asarray(file[key], np.float64) for key in file.files}
    except _DAMAGES as error:
        raise InputError(f"{path}: damaged: {error}; make it anew with make_ground_truth.py") from error
