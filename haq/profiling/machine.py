"""`haq profile`: measure this machine for a model, and write what it costs as a hardware profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from haq import __version__
from haq.edges.progress import Reporter
from haq.hardware import build_cost_model, cpu_capability, cpu_model, network_digest
from haq.hardware.costs import cost_report
from haq.hardware.host import cores
from haq.hardware.profile import HardwareProfile
from haq.hardware.sections import Measured
from haq.profiling.document import write_profile
from haq.profiling.energy import energy_mj
from haq.profiling.fit import Fit, Fitter, Sample, fit, fit_layers, left_out_errors, prior, sample, shares
from haq.profiling.journal import Measurements
from haq.profiling.policies import anchors, mixed_policies
from haq.profiling.runtimes.base import FLOAT, Prepared, Runtime
from haq.profiling.runtimes.choice import QUANTIZATION, RuntimeChoice, build_runtime
from haq.profiling.timing import Rounds, measure_rounds, medians, noise_floor, noise_warning, paced
from haq.quant import QuantizedModel, resolve
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.network import Network
from haq.values.policy import Policy

if TYPE_CHECKING:
    from haq.experiment.experiment import Experiment

_US_PER_MS = 1e3
_LAYER_RUNS = 200
_SAMPLES = 8
_MOST_UNMET_SHOWN = 5


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        runtime: what executes.
        policies: mixed ones, for the switches.
        rounds: of interleaved repeats.
        seed: of the mixed policies.
    """

    runtime: RuntimeChoice = field(default_factory=RuntimeChoice)
    policies: int = 12
    rounds: int = 30
    seed: int = 0


def open_runtime(experiment: Experiment, choice: RuntimeChoice) -> Runtime:
    """The runtime for an experiment's model, quantized as the experiment says, else as integer kernels want it.

    Raises:
        InputError: the runtime is unknown or cannot run the model, or there are not so many processors.
    """
    choice.check()
    if choice.threads > cores():
        raise InputError(f"--threads {choice.threads}: this process may use {cores()} processors")
    data = experiment.given_data.train
    inputs = data.head(_SAMPLES).inputs
    if choice.name != "onnxruntime":
        return build_runtime(choice, experiment.model, None, inputs)
    quantization = resolve(experiment.config.quantization, QUANTIZATION)
    quantized = QuantizedModel(
        experiment.model,
        quantization=quantization,
        calibration=list(data.head(quantization.calibration_samples).batches(experiment.config.evaluator.batch_size)),
        layers=experiment.network.layer_names,
    )
    return build_runtime(choice, experiment.model, quantized, inputs)


def prepare(runtime: Runtime, policies: Sequence[Policy], show: Reporter) -> dict[str, Prepared]:
    """Policy key -> ready to run; tells the progress."""
    prepared = {}
    for index, policy in enumerate(policies):
        show.step(index, len(policies))
        prepared[policy.key] = runtime.prepare(policy)
    return prepared


def features(network: Network, policies: Sequence[Policy], times: Mapping[str, float], low: Precision) -> list[Sample]:
    """What the fit knows of measured policies."""
    plain = HardwareProfile.model_validate(
        {
            "name": "float-and-low",
            "title": "formats only",
            "kind": "capability",
            "device": {"vendor": "-", "chip": "-"},
            "provenance": {"source": "-", "date": "2026-01-01", "derived": "formats only"},
            "formats": [{"pairs": [str(FLOAT), str(low)]}],
            "input_format": "fp32",
        }
    )
    model = build_cost_model(plain)
    return [sample(cost_report(network, model, policy), times[policy.key]) for policy in policies]


def profile_machine(
    experiment: Experiment, out: Path, *, settings: Settings, resume: bool, command: str, show: Reporter
) -> dict[str, Any]:
    """Measure this machine for the experiment's model and write a profile.

    Args:
        experiment: its model, data and quantization settings; the device that it names is not read.
        out: the profile, ends in `.toml`; beside it the table (`.csv`) and the raw measurements
            (`.measurements.jsonl`) are written.
        settings: how much is measured.
        resume: go on with the measurements that are there.
        command: how the user started it, for the provenance.
        show: shows progress.

    Returns:
        What was found, as plain data.

    Raises:
        InputError: something the user gave cannot be used.
    """
    if out.suffix != ".toml":
        raise InputError(f"--out {out}: a profile is a TOML file; end its name in .toml")
    if out.exists() and not resume:
        raise InputError(f"{out}: already exists; name another --out, or add --resume to go on with its measurements")
    show.stage("tracing the model")
    network = experiment.network
    show.stage("calibrating")
    runtime = open_runtime(experiment, settings.runtime)
    setup = _setup(experiment, runtime, settings)
    journal = Measurements(out.with_suffix(".measurements.jsonl"), setup, resume=resume)
    try:
        ends = anchors(network.layer_names, runtime.low)
        mixed = mixed_policies(network.layer_names, runtime.low, settings.policies, seed=settings.seed)
        _measure(runtime, [*ends, *mixed], journal, settings, show)
    finally:
        journal.close()
    rounds = paced(journal.of("round"), [policy.key for policy in ends])
    times, layers, unmet = medians(rounds), journal.of("layers")[0], journal.of("unmet")[0]
    top, bottom, *rest = features(network, [*ends, *mixed], times, runtime.low)
    if layers["low"] is None:
        model: Fitter = partial(fit_layers, prior(network), (top, bottom))
    else:
        low = shares(layers["low"], times[ends[1].key] * _US_PER_MS)
        floating = shares(layers["float"], times[ends[0].key] * _US_PER_MS)
        model = partial(fit, floating, low, (top, bottom))
    found = model(rest)
    errors = np.abs(left_out_errors(model, rest))
    measured = Measured(
        cpu=f"the device behind {settings.runtime.command}" if settings.runtime.command else cpu_model(),
        package=runtime.package[0],
        package_version=runtime.package[1],
        threads=settings.runtime.threads,
        accelerator=getattr(runtime, "accelerator", ""),
        command=settings.runtime.command,
        capability="" if settings.runtime.command else cpu_capability(),
        exact=runtime.package[0] == "onnxruntime",
        low=str(runtime.low),
        network=network_digest(network),
        noise_floor_percent=round(noise_floor(rounds), 3),
        error_percent=round(float(errors.mean()), 3),
        guard_percent=round(float(np.quantile(errors, 0.9)), 3),
        policies=tuple(policy.key for policy in (*ends, *mixed)),
    )
    if (warning := noise_warning(measured.noise_floor_percent)) is not None:
        show.note(warning)
    source = f"haq {__version__} on this machine: {command}" if command else f"haq {__version__} on this machine"
    energies = journal.of("energy")[0]
    notes = _notes(runtime, unmet, mixed, rounds, energies)
    write_profile(
        out,
        network,
        found,
        runtime.low,
        measured=measured,
        runtime=runtime.title,
        source=source,
        notes=notes,
        watts=_watts(energies, (top, bottom)),
    )
    document = _document(out, network, found, (top, bottom), measured, unmet, len(rest), len(rounds))
    return document | {"energy_mj": energies}


def _setup(experiment: Experiment, runtime: Runtime, settings: Settings) -> dict[str, Any]:
    return {
        "haq": __version__,
        "cpu": cpu_model(),
        "runtime": runtime.title,
        "threads": settings.runtime.threads,
        "policies": settings.policies,
        "seed": settings.seed,
        "model": experiment.hashes["model"],
        "quantization": resolve(experiment.config.quantization, QUANTIZATION).model_dump(mode="json"),
    }


def _measure(
    runtime: Runtime, policies: Sequence[Policy], journal: Measurements, settings: Settings, show: Reporter
) -> None:
    keys = {policy.key for policy in policies}
    if any(set(entry) != keys for entry in journal.of("round")):
        raise InputError(f"{journal.path}: a round lacks policies or has others; name another --out")
    if not journal.of("layers"):
        show.stage("timing layers inside the graph")
        named = zip(("float", "low"), policies[:2], strict=True)
        times = {name: runtime.layer_times(policy, runs=_LAYER_RUNS) for name, policy in named}
        journal.add("layers", times)
    left = settings.rounds - len(journal.of("round"))
    if left <= 0 and journal.of("unmet") and journal.of("energy"):
        return
    show.stage(f"exporting {len(policies)} policies")
    prepared = prepare(runtime, policies, show)
    if not journal.of("energy"):
        ends = zip(("float", "low"), policies[:2], strict=True)
        found = {name: _energy(prepared[policy.key]) for name, policy in ends}
        journal.add("energy", found if None not in found.values() else None)
    journal.add("unmet", {key: list(entry.unmet) for key, entry in prepared.items() if entry.unmet})
    show.stage(f"timing {len(policies)} policies, interleaved")

    def done(minima_of_round: dict[str, float]) -> None:
        journal.add("round", minima_of_round)
        show.step(len(journal.of("round")), settings.rounds)

    measure_rounds(prepared, left, threads=settings.runtime.threads, done=done)


def _energy(prepared: Prepared) -> float | None:
    return None if prepared.repeats_itself else energy_mj(prepared.run)


def _watts(energies: Mapping[str, float] | None, ends: tuple[Sample, Sample]) -> tuple[float, float] | None:
    """Mean power in float and in low precision; millijoules per millisecond are watts."""
    return None if energies is None else (energies["float"] / ends[0].ms, energies["low"] / ends[1].ms)


def _notes(
    runtime: Runtime,
    unmet: Mapping[str, Sequence[str]],
    mixed: Sequence[Policy],
    rounds: Rounds,
    energies: Mapping[str, float] | None,
) -> tuple[str, ...]:
    upper = {key: np.quantile([entry[key] for entry in rounds], 0.75) for key in rounds[0]}
    spread = max(upper[key] / ms - 1.0 for key, ms in medians(rounds).items())
    notes = [
        f"only {FLOAT} and {runtime.low} were executed and are offered; nothing is known of other formats",
        f"{len(mixed)} mixed policies, {len(rounds)} rounds; of some policy one round in four is {100 * spread:.1f} % "
        "above the median or more",
        "no energy: no power counter could be read"
        if energies is None
        else "energy: counters of the processor packages (RAPL), with idle power and all that ran meanwhile; layers "
        "and switches by their share of the time",
    ]
    layers = sorted({name for names in unmet.values() for name in names})
    if layers:
        shown = ", ".join(layers[:_MOST_UNMET_SHOWN]) + (", ..." if len(layers) > _MOST_UNMET_SHOWN else "")
        notes.append(f"executed otherwise than asked in some policies: {shown}")
    return tuple(notes)


def _document(
    out: Path,
    network: Network,
    found: Fit,
    ends: tuple[Sample, Sample],
    measured: Measured,
    unmet: Mapping[str, Sequence[str]],
    policies: int,
    rounds: int,
) -> dict[str, Any]:
    return {
        "profile": str(out),
        "table": str(out.with_suffix(".csv")),
        "float_ms": ends[0].ms,
        "low_ms": ends[1].ms,
        "layers": {
            layer.name: {"float_ms": found.floating[layer.name], "low_ms": found.low[layer.name]}
            for layer in network.layers
        },
        "fixed_us": {kind: value * _US_PER_MS for kind, value in found.fixed.items()},
        "per_element_ns": {kind: value * 1e6 for kind, value in found.per_element.items()},
        "policies": policies,
        "rounds": rounds,
        "executed_otherwise": {key: list(names) for key, names in unmet.items()},
        **measured.model_dump(exclude={"policies", "network"}),
    }
