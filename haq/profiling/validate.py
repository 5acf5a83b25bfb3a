"""`haq validate`: how well does a profile predict policies that it was not fitted on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from haq.edges.documents import write_json
from haq.edges.progress import Reporter
from haq.hardware import HardwareProfile, build_cost_model, load_profile, profile_warnings
from haq.hardware.costs import cost_report
from haq.hardware.sections import Measured
from haq.profiling.machine import open_runtime, prepare
from haq.profiling.policies import anchors, mixed_policies
from haq.profiling.runtimes.base import Runtime
from haq.profiling.runtimes.choice import RuntimeChoice
from haq.profiling.standalone import standalone_times, summed
from haq.profiling.timing import Rounds, measure_rounds, medians, noise_floor, noise_warning, paced, paces
from haq.report import write_validation
from haq.values.errors import InputError

if TYPE_CHECKING:
    from haq.experiment.experiment import Experiment


@dataclass(frozen=True)
class Accuracy:
    """How well predictions fit measurements; errors in per cent of what was measured.

    Attributes:
        mean: absolute error.
        p90: ninetieth percentile of it.
        worst: largest.
        bias: mean signed error; above 0: predicted too slow.
        spearman: rank correlation.
    """

    mean: float
    p90: float
    worst: float
    bias: float
    spearman: float


def accuracy(predicted: Sequence[float], measured: Sequence[float]) -> Accuracy:
    """Compare two lists of times."""
    errors = 100.0 * (np.asarray(predicted) / np.asarray(measured) - 1.0)
    size = np.abs(errors)
    rank = float(spearmanr(predicted, measured).statistic)
    return Accuracy(float(size.mean()), float(np.quantile(size, 0.9)), float(size.max()), float(errors.mean()), rank)


def measured_profile(path: str | Path) -> tuple[HardwareProfile, Measured]:
    """Read a profile that `haq profile` made.

    Raises:
        InputError: no such profile, or one that was not measured.
    """
    profile = load_profile(path)
    if profile.measured is None or not RuntimeChoice.known(profile.measured):
        raise InputError(f"{path}: was not measured on a machine; make a profile of this one with haq profile")
    return profile, profile.measured


def validate_profile(
    experiment: Experiment,
    path: str | Path,
    *,
    policies: int,
    rounds: int,
    seed: int,
    out: Path,
    show: Reporter,
    baselines: bool = True,
    command: str = "",
) -> dict[str, Any]:
    """Predict and measure random mixed policies; write `validation.json` and `validation.png` into `out`.

    Times are at the pace of the profile: scaled so that float and low precision take (geometric mean) what they took
    when it was made. `pace` is what they take now, relative to that, `as_timed` the errors without that scale.

    Args:
        experiment: its model and data.
        path: the profile, a name or a file.
        policies: how many; half in runs of layers, half independent by layer; none that the profile was fitted on.
        rounds: interleaved repeats.
        seed: of the policies.
        out: folder.
        show: shows progress.
        baselines: also the summed stand-alone times and the bit operations.
        command: for a profile that was measured with one; default: `device.command` of the experiment.

    Returns:
        The content of `validation.json`.

    Raises:
        InputError: the profile is not a measured one, or does not fit the model.
    """
    profile, measured = measured_profile(path)
    choice = RuntimeChoice.of(measured, command=command or experiment.config.device.command)
    show.stage("tracing the model")
    network = experiment.network
    for warning in (warnings := profile_warnings(profile, network)):
        show.note(f"warning: {warning}")
    model = build_cost_model(profile)
    runtime = open_runtime(experiment, choice)
    for warning in (others := accelerator_warnings(measured, runtime)):
        show.note(f"warning: {warning}")
    held_out = mixed_policies(network.layer_names, runtime.low, policies, seed=seed, exclude=measured.policies)
    ends = anchors(network.layer_names, runtime.low)
    chosen = [*ends, *held_out]
    predicted = [cost_report(network, model, policy).totals for policy in chosen]
    show.stage(f"exporting {len(chosen)} policies")
    prepared = prepare(runtime, chosen, show)
    show.stage(f"timing {len(chosen)} policies, interleaved")
    taken: Rounds = []

    def done(entry: dict[str, float]) -> None:
        taken.append(entry)
        show.step(len(taken), rounds)

    measure_rounds(prepared, rounds, threads=measured.threads, done=done)
    profiled = [entry["latency_ms"] for entry in predicted]
    references = [policy.key for policy in ends]
    of_profile = float(np.sqrt(profiled[0] * profiled[1]))
    pace = float(np.median(paces(taken, references))) / of_profile
    taken = paced(taken, references, ms=of_profile)
    times = medians(taken)
    ms = [times[policy.key] for policy in chosen]
    models = {"this profile": profiled}
    if baselines and choice.name != "command":
        show.stage("timing each layer alone")
        alone = standalone_times(experiment.model, network, runtime.low, choice=choice, show=show)
        models["summed stand-alone times"] = [value / pace for value in summed(alone, chosen)]
    if baselines:
        models["bit operations, through both ends"] = _through_ends([entry["bops"] for entry in predicted], ms)
    document = {
        "schema_version": 1,
        "profile": profile.name,
        "device": profile.title,
        "experiment": experiment.config.name,
        "policies": len(held_out),
        "rounds": rounds,
        "noise_floor_percent": noise_floor(taken),
        "warnings": [*warnings, *others],
        "float_ms": ms[0],
        "low_ms": ms[1],
        "pace": pace,
        "models": {key: asdict(accuracy(values[2:], ms[2:])) for key, values in models.items()},
        "as_timed": asdict(accuracy(profiled[2:], [pace * value for value in ms[2:]])),
        "rows": [
            {
                "policy": policy.to_doc(),
                "clustered": index % 2 == 0,
                "measured_ms": ms[index + 2],
                "predicted_ms": {key: values[index + 2] for key, values in models.items()},
                "executed_otherwise": list(prepared[policy.key].unmet),
            }
            for index, policy in enumerate(held_out)
        ],
    }
    if (busy := noise_warning(noise_floor(taken))) is not None:
        show.note(busy)
    write_json(out / "validation.json", document)
    write_validation(document, out / "validation.png")
    return document


def accelerator_warnings(measured: Measured, runtime: Runtime) -> tuple[str, ...]:
    """Why times of another GPU do not hold here."""
    here = getattr(runtime, "accelerator", "")
    if here == measured.accelerator:
        return ()
    return (f"the profile was measured on {measured.accelerator}, this is {here}: its timings are not valid here",)


def _through_ends(values: Sequence[float], ms: Sequence[float]) -> list[float]:
    """The straight line from a proxy to milliseconds that is exact for the first two policies, the anchors."""
    slope = (ms[0] - ms[1]) / (values[0] - values[1]) if values[0] != values[1] else 0.0
    return [ms[1] + slope * (value - values[1]) for value in values]
