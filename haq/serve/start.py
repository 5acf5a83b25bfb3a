"""What to serve: a family's folder as it is, a run's policy as a family of one."""

from __future__ import annotations

import shutil
from pathlib import Path

from haq.adaptive.family import DOCUMENT
from haq.edges.progress import Reporter
from haq.experiment.experiment import Experiment
from haq.results.read import load_run
from haq.runs.family import make_family
from haq.values.errors import InputError


def is_family(source: Path) -> bool:
    """Whether `haq family` wrote the folder; a run's is not.

    Raises:
        InputError: neither.
    """
    if (source / DOCUMENT).is_file():
        return True
    if (source / "policy.json").is_file():
        return False
    raise InputError(f"{source}: neither a family nor a run folder; give what haq family or haq search wrote")


def family_of_run(source: Path, experiment: Experiment, state: Path, reporter: Reporter) -> Path:
    """The run's policy as a family of one in `state`, made where it is not there yet.

    Raises:
        InputError: the policy cannot be measured or exported.
    """
    out = state / "family"
    policy = experiment.load_policy(source / "policy.json")
    if (out / DOCUMENT).is_file():
        return out
    made = state / "family.part"
    shutil.rmtree(made, ignore_errors=True)
    load_run(source)  # a run that is damaged is refused before anything is measured
    make_family(experiment, [policy], made, onnx=True, source=str(source), reporter=reporter)
    made.replace(out)
    return out
