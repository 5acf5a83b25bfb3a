"""`haq profile --runtime qemu` and `haq validate` of its profiles: instructions of an emulated microcontroller."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq import __version__
from haq.edges.documents import write_json, write_text
from haq.edges.progress import Reporter
from haq.hardware import build_cost_model, load_profile
from haq.hardware.costs import cost_report
from haq.hardware.kinds.table import network_digest
from haq.profiling.document import quoted, toml_text
from haq.profiling.journal import Measurements
from haq.profiling.runtimes.choice import QUANTIZATION
from haq.profiling.runtimes.qemu import EmulatedBoard
from haq.profiling.validate import accuracy
from haq.quant import QuantizedModel, resolve
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy

if TYPE_CHECKING:
    from haq.experiment.experiment import Experiment

RUNTIME = "QEMU mps2-an500, instructions"
PRECISIONS = tuple(Precision.parse(f"w{w}a{a}") for w in (2, 3, 4, 8) for a in (2, 4, 8))
_SAMPLES = 8
_DEFAULTS: Mapping[str, Any] = {
    **{"device": "cpu", "command": "", "low": "w8a8", "timeout": 60.0, "threads": 1, "policies": 12, "rounds": 30}
}
_INSTRUCTIONS_PER_MS = 1e6
_NOTES = (
    "instructions, not cycles: no caches, no wait states; one instruction is one nanosecond of the emulator's clock",
    "what runs between layers counts to the layer before; each layer was measured where all have its precision",
    "layers write the format that their readers want, so a switch costs no pass over the tensor of its own",
)


def check_options(**options: Any) -> None:
    """Raise where an option of timed runtimes is given: instructions need no repeats, and come out the same.

    Raises:
        InputError: names it.
    """
    for name, value in options.items():
        if value != _DEFAULTS[name]:
            raise InputError(f"--{name} {value}: is not for the emulated board, which counts once; leave it out")


def profile_microcontroller(
    experiment: Experiment, out: Path, *, resume: bool, command: str, show: Reporter
) -> dict[str, Any]:
    """Count each layer's instructions in each precision and write a profile of kind `table`.

    Args:
        experiment: its model, data and quantization settings.
        out: the profile, ends in `.toml`; the table (`.csv`) and the raw counts (`.measurements.jsonl`) lie beside it.
        resume: go on with the counts that are there; refused where compiler, emulator or board are other ones.
        command: how the user started it.
        show: shows progress.

    Returns:
        What was found, as plain data.

    Raises:
        InputError: something the user gave cannot be used, or a tool is missing.
    """
    if out.suffix != ".toml":
        raise InputError(f"--out {out}: a profile is a TOML file; end its name in .toml")
    if out.exists() and not resume:
        raise InputError(f"{out}: already exists; name another --out, or add --resume to go on with its measurements")
    versions, network = EmulatedBoard.versions(), experiment.network
    board = open_board(experiment)
    setup = {**versions, "network": network_digest(network), "precisions": [str(p) for p in PRECISIONS]}
    journal = Measurements(out.with_suffix(".measurements.jsonl"), setup, resume=resume)
    show.stage(f"counting instructions in {len(PRECISIONS)} precisions")
    try:
        for precision in PRECISIONS[len(journal.of("round")) :]:
            journal.add("round", board.instructions(Policy.uniform(network.layer_names, precision)))
            show.step(len(journal.of("round")), len(PRECISIONS))
    finally:
        journal.close()
    counts = dict(zip(PRECISIONS, journal.of("round"), strict=True))
    _write(out, counts, versions, command)
    totals = {str(precision): sum(layers.values()) for precision, layers in counts.items()}
    return {"schema_version": 1, "profile": str(out), **versions, "instructions": totals}


def open_board(experiment: Experiment) -> EmulatedBoard:
    """The emulated board for an experiment's model."""
    train = experiment.given_data.train
    quantization = resolve(experiment.config.quantization, QUANTIZATION)
    calibration = train.head(min(64, quantization.calibration_samples))
    quantized = QuantizedModel(
        experiment.model,
        quantization=quantization,
        calibration=list(calibration.batches(experiment.config.evaluator.batch_size)),
        layers=experiment.network.layer_names,
    )
    return EmulatedBoard(experiment.model, quantized, train.head(_SAMPLES).inputs)


def _write(
    out: Path, counts: Mapping[Precision, Mapping[str, float]], versions: Mapping[str, str], command: str
) -> None:
    rows = ["layer,weight,activation,latency_ms,energy_mj"]
    for precision, layers in counts.items():
        for name, count in layers.items():
            rows.append(f"{quoted(name)},{precision.weight},{precision.activation},{count / _INSTRUCTIONS_PER_MS:.8g},")
    write_text(out.with_suffix(".csv"), "\n".join(rows) + "\n")
    tools = f"{versions['arm-none-eabi-gcc']}; {versions['qemu-system-arm']}"
    sections: list[tuple[str, Mapping[str, Any]]] = [
        ("", {"title": "Cortex-M7 under emulation, instructions", "kind": "table", "batch": 1}),
        ("[device]", {"vendor": "Arm", "chip": "Cortex-M7 (mps2-an500)", "runtime": RUNTIME, "threads": 1}),
        (
            "[provenance]",
            {
                "source": f"haq {__version__}: {command}; {tools}",
                "date": date.today(),
                "measured": "instructions of each layer of the generated C under -icount shift=0, 40 at a time",
                "notes": list(_NOTES),
            },
        ),
        ("[[formats]]", {"pairs": [str(precision) for precision in counts]}),
        ("[quantization]", QUANTIZATION.model_dump(exclude_none=True)),
        ("[table]", {"file": out.with_suffix(".csv").name}),
        *(
            (f"[[{what}]]", {"from": "*", "to": "*", "fixed_us": 0.0, "per_element_ns": 0.0})
            for what in ("switch", "join")
        ),
    ]
    write_text(out, toml_text(sections))


def is_emulated(path: str | Path) -> bool:
    """Whether a profile was made by `profile_microcontroller`."""
    return load_profile(path).device.runtime == RUNTIME


def validate_microcontroller(
    experiment: Experiment, path: str | Path, *, policies: int, seed: int, out: Path, show: Reporter
) -> dict[str, Any]:
    """Predict and count the instructions of random mixed policies; write `validation.json` into `out`.

    Raises:
        InputError: the profile is for another model, or a tool is missing.
    """
    profile, network = load_profile(path), experiment.network
    model, board = build_cost_model(profile), open_board(experiment)
    EmulatedBoard.versions()
    chosen = list(_random_policies(network.layer_names, policies, seed))
    predicted = [cost_report(network, model, policy).totals["latency_ms"] for policy in chosen]
    show.stage(f"counting {len(chosen)} policies")
    counted = []
    for policy in chosen:
        counted.append(sum(board.instructions(policy).values()) / _INSTRUCTIONS_PER_MS)
        show.step(len(counted), len(chosen))
    document = {
        "schema_version": 1,
        "profile": profile.name,
        "device": profile.title,
        "experiment": experiment.config.name,
        "policies": len(chosen),
        "unit": "millions of instructions",
        "models": {"this profile": asdict(accuracy(predicted, counted))},
        "rows": [
            {"policy": policy.to_doc(), "predicted": guess, "counted": count}
            for policy, guess, count in zip(chosen, predicted, counted, strict=True)
        ],
    }
    write_json(out / "validation.json", document)
    return document


def _random_policies(layers: Iterable[str], count: int, seed: int) -> Iterable[Policy]:
    rng, names = random.Random(seed), list(layers)
    for _ in range(count):
        yield Policy({name: rng.choice(PRECISIONS) for name in names})
