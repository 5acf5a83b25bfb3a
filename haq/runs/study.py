"""`haq study`: weights or activations? A grid of uniform policies by treatments, measured and compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haq.edges.cells import csv_text
from haq.edges.documents import write_bytes, write_json, write_text
from haq.edges.progress import Reporter, Silent
from haq.evaluate.base import UNITS
from haq.experiment.config import ExperimentConfig
from haq.experiment.experiment import Experiment
from haq.experiment.workers import open_executor
from haq.hardware.base import ProfileCostModel
from haq.hardware.costs import cost_report
from haq.repair import ORDER
from haq.report.figures.study import StudyBars, plot_study, study_png
from haq.runs.ladder import measure_all
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.values.trial import Measurement

PRECISIONS = ("w8a8", "w4a8", "w4a4", "w2a8")
TREATMENTS = ("none", "bn", *(name for name in ORDER if name not in ("absorb_bias", "adaround")), "qat")
_KNOWN = ("none", "bn", *ORDER, "qat")
CALIBRATIONS = ("minmax", "percentile", "mse", "entropy")
_TIE = 2.0


@dataclass(frozen=True)
class Treatment:
    """How the policies of a column are calibrated and repaired.

    Attributes:
        calibration: of activations; `None`: the experiment's own.
        repair: a name in `haq.repair.ORDER`, `none`, `bn` or `qat`.
    """

    calibration: str | None
    repair: str

    @property
    def name(self) -> str:
        return self.repair if self.calibration is None else f"{self.calibration}, {self.repair}"

    @property
    def rung(self) -> str:
        """What measures it."""
        return self.repair if self.repair in ("bn", "adaround", "gptq", "qat") else "ptq"

    def of(self, config: ExperimentConfig) -> ExperimentConfig:
        """`config` under this treatment."""
        quantization: dict[str, Any] = {"repairs": (), "bias_correction": False}
        if self.repair in ORDER and self.rung == "ptq":
            quantization["repairs"] = (self.repair,)
        if self.calibration is not None:
            quantization["activation_calibration"] = self.calibration
        evaluator: dict[str, Any] = {"kind": self.rung, "ladder": (), "reduction": 3.0}
        if self.rung != "qat":
            evaluator["qat"] = None
        changed = {
            "quantization": config.quantization.model_copy(update=quantization),
            "evaluator": config.evaluator.model_copy(update=evaluator),
        }
        return config.model_copy(update=changed)


def treatments(repairs: Sequence[str], calibrations: Sequence[str]) -> list[Treatment]:
    """The columns: each calibration with each repair; what trains learns its ranges, and stands once.

    Raises:
        InputError: an unknown name.
    """
    for known, names, option in ((_KNOWN, repairs, "--repair"), (CALIBRATIONS, calibrations, "--calibration")):
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"{option} {unknown[0]!r}: unknown; known: {', '.join(known)}")
    found = []
    for calibration in calibrations or (None,):
        found += [Treatment(calibration, name) for name in dict.fromkeys(repairs) if name != "qat"]
    return found + [Treatment(None, "qat")] * ("qat" in repairs)


def run_study(
    experiment: Experiment,
    out: Path,
    *,
    precisions: Sequence[str] = PRECISIONS,
    repairs: Sequence[str] = TREATMENTS,
    calibrations: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Measure uniform policies under each treatment and write `study.json`, `study.csv` and `study.png` to `out`.

    Args:
        experiment: gives model, data, device and the settings that a treatment leaves alone; its executor and cache are
            used.
        out: the folder.
        precisions: of the uniform policies.
        repairs: names in `haq.repair.ORDER`, `none`, `bn`, `qat`; what a model has no use for is a cell with its
            reason.
        calibrations: of activations, each with each repair; default: the experiment's own.
        reporter: shows progress.

    Returns:
        The content of `study.json`: `float_score`; `rows`, one for each precision and treatment, with `score`, `noise`
        (one standard error), `seconds` and `error`; `costs` by precision (weight bytes, peak activation bytes, bytes
        moved for each, latency and energy where the device runs it); `conclusions`, in words.

    Raises:
        InputError: an unknown name, or a folder that holds another study.
    """
    show, columns = reporter or Silent(), treatments(repairs, calibrations)
    policies = [_policy(experiment, text) for text in dict.fromkeys(precisions)]
    if (out / "study.json").exists() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out}: a study already is there, or a file; name another --out")
    experiment.check()
    rows: list[dict[str, Any]] = []
    floating = experiment.evaluator("search").float_measurement()
    for number, treatment in enumerate(columns):
        show.stage(treatment.name)
        rows += _column(experiment, treatment, policies, show)
        show.step(number + 1, len(columns))
    document = {
        "schema_version": 1,
        "experiment": experiment.config.name,
        "device": experiment.profile.name,
        "metric": experiment.config.evaluator.metric,
        "split": "search",
        "samples": experiment.evaluator("search").samples,
        "float_score": floating.score,
        "rows": rows,
        "costs": {text: _costs(experiment, policy) for text, policy in policies},
        "conclusions": _conclusions(rows, UNITS.get(experiment.config.evaluator.metric, "")),
    }
    write_text(out / "study.csv", csv_text(_table(document)))
    write_bytes(out / "study.png", study_png(plot_study(_bars(document))))
    write_json(out / "study.json", document)
    return document


def _policy(experiment: Experiment, text: str) -> tuple[str, Policy]:
    try:
        precision = Precision.parse(text)
    except ValueError as error:
        raise InputError(f"--precision {text!r}: {error}") from error
    return str(precision), Policy.uniform(experiment.network.layer_names, precision)


def _column(
    experiment: Experiment, treatment: Treatment, policies: Sequence[tuple[str, Policy]], show: Reporter
) -> Iterable[dict[str, Any]]:
    """One treatment's rows; a treatment that the model has no use for has its reason in each."""
    try:
        treated = Experiment(treatment.of(experiment.config), folder=experiment.folder)
        shared = ("model", "given_data", "data", "network", "loss", "metric", "hashes")
        treated.adopt({name: getattr(experiment, name) for name in shared})
        with open_executor(treated, rung=treatment.rung, note=show.note) as executor:
            found = measure_all(executor, [policy for _, policy in policies], lambda policy, measured: None)
        samples = treated.evaluator("search").samples
    except InputError as error:
        reason = " ".join(str(error).split())
        return [_row(text, treatment, None, 0, reason) for text, _ in policies]
    return [_row(text, treatment, found[policy], samples) for text, policy in policies]


def _row(
    precision: str, treatment: Treatment, measured: Measurement | None, samples: int, reason: str = ""
) -> dict[str, Any]:
    ok = measured is not None and measured.ok
    score = measured.score if measured is not None and ok else None
    return {
        "precision": precision,
        "treatment": treatment.name,
        "calibration": treatment.calibration,
        "repair": treatment.repair,
        "score": score,
        "noise": _noise(measured, samples) if ok else None,
        "seconds": None if measured is None else measured.seconds,
        "error": reason or (measured.error if measured is not None and not ok else ""),
    }


def _noise(measured: Measurement | None, samples: int) -> float | None:
    """One standard error: the evaluator's own, else that of a share of right answers."""
    if measured is None:
        return None
    known = measured.details.get("score_error")
    if known is not None or not 0 <= measured.score <= 100 or samples < 2:
        return known
    share = measured.score / 100.0
    return 100.0 * math.sqrt(share * (1.0 - share) / samples)


def _costs(experiment: Experiment, policy: Policy) -> dict[str, float | None]:
    """Bytes of any device of a profile; time and energy where the device runs the precision."""
    model, network = experiment.cost_model, experiment.network
    found: dict[str, float | None] = {}
    if isinstance(model, ProfileCostModel):
        moved = [model.moved_bytes(layer, policy[layer.name]) for layer in network.layers]
        found["weight_bytes"] = float(sum(model.weight_bytes(one, policy[one.name].weight) for one in network.layers))
        found["moved_weight_bytes"] = float(sum(weights for weights, _ in moved))
        found["moved_activation_bytes"] = float(sum(activations for _, activations in moved))
    try:
        totals = cost_report(network, model, policy).totals
    except InputError:
        totals = {}
    for metric in ("size_bytes", "peak_activation_bytes", "latency_ms", "energy_mj"):
        found[metric] = totals.get(metric)
    return found


def _conclusions(rows: Sequence[dict[str, Any]], unit: str) -> list[str]:
    """For each treatment that has the three policies: which of the two is the more sensitive to half the bits."""
    found = []
    for name in dict.fromkeys(row["treatment"] for row in rows):
        own = {row["precision"]: row for row in rows if row["treatment"] == name and row["score"] is not None}
        for full, half_weights, half_both in (("w8a8", "w4a8", "w4a4"), ("w4a4", "w2a4", "w2a2")):
            if {full, half_weights, half_both} <= own.keys():
                steps = [own[text] for text in (full, half_weights, half_both)]
                found.append(f"{name}: {_sentence(steps, points=bool(unit))}")
    return found


def _sentence(steps: Sequence[dict[str, Any]], *, points: bool) -> str:
    first, second, third = steps
    weights, activations = first["score"] - second["score"], second["score"] - third["score"]
    errors = [row["noise"] for row in steps]
    unit = " points" if points else ""
    lost = (
        f"half the weight bits ({first['precision']} to {second['precision']}) lose {weights:.3g}{unit}, half the "
        f"activation bits ({second['precision']} to {third['precision']}) {activations:.3g}{unit}"
    )
    lead = activations - weights
    if None in errors:
        return f"{lost}; the noise is not known"
    # The middle policy is in both differences: its error counts twice.
    noise = _TIE * math.sqrt(errors[0] ** 2 + 4 * errors[1] ** 2 + errors[2] ** 2)
    if abs(lead) <= noise:
        return f"{lost}: a tie (noise ±{noise:.3g}{unit})"
    which = "activations" if lead > 0 else "weights"
    return f"{lost}: {which} are the more sensitive, by {abs(lead):.3g}{unit} (noise ±{noise:.3g})"


def _table(document: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("precision", "treatment", "score", "noise", "seconds", "error")
    return [{**{key: row[key] for key in keys}, **document["costs"][row["precision"]]} for row in document["rows"]]


def _bars(document: dict[str, Any]) -> StudyBars:
    names = list(dict.fromkeys(row["treatment"] for row in document["rows"]))
    texts = list(dict.fromkeys(row["precision"] for row in document["rows"]))
    cells = {(row["precision"], row["treatment"]): (row["score"], row["noise"]) for row in document["rows"]}
    return StudyBars(
        tuple(texts), tuple(names), cells, float(document["float_score"]), document["metric"], document["experiment"]
    )
