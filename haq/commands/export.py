"""`haq export`: a policy of an experiment as a file, checked if asked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from haq.deployed.check import LOOSE_TOLERANCE, TOLERANCE, Comparison, compare
from haq.edges.documents import read_json
from haq.export import ExportOptions, Runner, export, exporter
from haq.hardware.costs import cost_report
from haq.quant import QuantizedModel
from haq.quant.nested import map_tensors
from haq.training import TrainableModel
from haq.values.errors import InputError
from haq.values.rung import Rung

if TYPE_CHECKING:
    from haq.experiment.experiment import Experiment
    from haq.values.policy import Policy


_PLAIN = ExportOptions()
_RANGE_SAMPLES = 128
_OF_CLASSES = ("cross_entropy", "kl_divergence", "accuracy", "agreement", "negative_kl", "token_accuracy", "mean_iou")
"""Losses and metrics of outputs that are scores of classes."""


def policy_file(source: Path) -> Path:
    """The policy of a run folder; a file is the policy itself."""
    return source / "policy.json" if source.is_dir() else source


def export_policy(
    experiment: Experiment,
    source: Path,
    out: Path,
    *,
    format: str,
    options: ExportOptions = _PLAIN,
    check: bool = False,
    samples: int | None = None,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """Write a policy of `experiment` to `out` as its evaluator scores it, on the last rung where there are several.

    The evaluator measures it once more: with the compensations that the experiment asks for, or fine-tuned, which takes
    as long as it did. What can be refused is refused before that.

    Args:
        experiment: gives model, data and quantization settings.
        source: a run folder or a policy file.
        out: the file to write.
        format: a name in `haq.export.EXPORTERS`.
        options: what the format is asked for beside.
        check: compare the file's outputs with those of the model that was scored, over the search split.
        samples: how many of the split, from its start; all by default.
        tolerance: of the check, see `Comparison.failures`; default: 0.02, with `integer_outputs` 0.1.

    Returns:
        `file`, `format`, `bytes` and the `predicted_bytes` of the policy (`size_bytes`, `None` where the device does
        not run it); `measurement` on the search split and the `search_score` that the search found there,
        if the policy's file says so; with `check` also `check` (see `Comparison`, with `tolerance`, `passed`,
        `failures` and their `cause`) and, for onnx, `kernels`: layer -> its precision, the operator that ONNX Runtime
        runs for it, and whether that `runs_as` integers or float32.

    Raises:
        InputError: the policy, the format or the file cannot be used.
    """
    for name, value in (("samples", samples), ("tolerance", tolerance)):
        if value is not None and not check:
            raise InputError(f"--{name}: is for --check; add --check, or leave it out")
    chosen = exporter(format, options)
    if check and chosen.load is None:
        raise InputError(f"--check: {format} is a file for another tool, which has to run it; leave the option out")
    path, rung = policy_file(source), experiment.config.evaluator.rungs[-1]
    trains = Rung(rung).trains
    if not trains:  # trained where it was scored, else where files are written and compared
        evaluator = experiment.config.evaluator.model_copy(update={"device": "cpu"})
        experiment = experiment.at(experiment.config.model_copy(update={"evaluator": evaluator}))
    policy = experiment.load_policy(path)
    model = experiment.fine_tuner.model if trains else experiment.quantized
    ranges = options.integer_outputs or chosen.calibrates
    inputs = experiment.given_data.train.head(_RANGE_SAMPLES if ranges else 2).inputs

    def write(file: Path) -> None:
        export(model, experiment.model, file, inputs=inputs, format=format, options=options)

    if isinstance(model, TrainableModel):
        model.apply(policy)
        _rehearse(write, out)
    measurement = experiment.evaluator("search", rung=rung)(policy)
    if not measurement.ok:
        raise InputError(f"{path}: the policy cannot be exported: {measurement.error}")
    write(out)
    document: dict[str, Any] = {"file": str(out), "format": format, "bytes": _bytes(out)}
    document["predicted_bytes"] = _predicted_bytes(experiment, policy)
    document |= {"measurement": measurement.to_doc(), "search_score": _search_score(path)}
    if not check or chosen.load is None:
        return document
    split = experiment.data.search if samples is None else experiment.data.search.head(samples)
    batches = split.batches(experiment.config.evaluator.batch_size)
    if tolerance is None:
        tolerance = LOOSE_TOLERANCE if options.integer_outputs else TOLERANCE
    compared = _Compared(_on_cpu(model), list(batches), experiment)
    comparison = compared.with_(chosen.load(out, experiment.model))
    failures = comparison.failures(tolerance)
    document["check"] = comparison.to_doc() | {"tolerance": tolerance, "passed": not failures, "failures": failures}
    if format == "onnx":
        document["kernels"] = _kernels(out, policy)
        if failures:
            document["check"]["cause"] = _cause(out, compared, tolerance)
    return document


def _predicted_bytes(experiment: Experiment, policy: Policy) -> float | None:
    try:
        return cost_report(experiment.network, experiment.cost_model, policy).totals["size_bytes"]
    except InputError:
        return None


def _bytes(out: Path) -> int:
    """Of a file, or of all files of a folder."""
    files = out.iterdir() if out.is_dir() else [out]
    return sum(file.stat().st_size for file in files)


def evaluate_integer(experiment: Experiment, source: Path, *, samples: int | None = None) -> dict[str, Any]:
    """Score a policy in integers only, beside the quantized model that the search scores.

    Args:
        experiment: gives model, data and quantization settings.
        source: a policy file.
        samples: of the search split, from its start; all by default.

    Returns:
        `measurement` of the quantized model, and as `integer` what `Comparison` says of the engine against it.

    Raises:
        InputError: see `export_policy`.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "integer.safetensors"
        document = export_policy(experiment, source, file, format="integer", check=True, samples=samples)
    return {
        "schema_version": 1,
        "metric": experiment.config.evaluator.metric,
        "split": "search",
        "engine": "integer",
        "score": document["check"]["exported_score"],
        "measurement": document["measurement"],
        "integer": document["check"],
    }


@dataclass(frozen=True)
class _Compared:
    """What files are compared with."""

    reference: Callable[[Any], Any]
    batches: list[tuple[Any, Any]]
    experiment: Experiment

    def with_(self, runner: Runner) -> Comparison:
        config = self.experiment.config.evaluator
        classes = config.loss in _OF_CLASSES or config.metric in _OF_CLASSES or ":" in config.loss
        return compare(
            self.reference,
            runner,
            self.batches,
            metric=self.experiment.metric,
            kind="classes" if classes else "values",
            class_axis=config.class_axis,
        )


def _cause(out: Path, compared: _Compared, tolerance: float) -> str:
    """Why a file computes something else here: the runtime's optimized kernels, or what the file says."""
    from haq.export.onnx.probe import has_signed_weights, saturates
    from haq.export.onnx.run import OnnxRunner

    content = out.read_bytes()
    plain = compared.with_(OnnxRunner(content, optimize=False))
    if plain.failures(tolerance):
        return (
            "the file itself: without any optimization ONNX Runtime computes the same as with it, "
            f"{100 * plain.relative_error:.3g} % off"
        )
    exact = f"without optimization the file is {100 * plain.relative_error:.2g} % off"
    if saturates() and has_signed_weights(content):
        return (
            f"saturation: {exact}; this processor has no VNNI, and its kernels add products of unsigned inputs and "
            "signed weights in 16 bits; export with --target-cpu any"
        )
    return f"ONNX Runtime's optimized kernels: {exact}; report it to the runtime, or run without optimization"


def _rehearse(write: Callable[[Path], None], out: Path) -> None:
    """Write the file beside `out` and remove it: hours of fine-tuning must not end in a refusal."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=out.parent, prefix=".haq-")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror or error}; choose another") from error
    with folder as name:
        write(Path(name) / out.name)


def _search_score(path: Path) -> float | None:
    document = read_json(path)
    measured = document.get("measured") if isinstance(document, dict) else None
    return measured.get("search_score") if isinstance(measured, dict) else None


def _on_cpu(model: QuantizedModel | TrainableModel) -> Callable[[Any], Any]:
    prepared = model.prepared if isinstance(model, TrainableModel) else model.to_device
    return lambda inputs: map_tensors(Tensor.cpu, model(prepared(inputs)))


def _kernels(file: Path, policy: Policy) -> dict[str, Any]:
    from haq.export.onnx.run import INTEGER_KERNELS, RUNS_AS, kernels

    ran = kernels(file.read_bytes(), policy)
    return {
        name: {
            "precision": str(precision),
            "operator": ran.get(name, "?"),
            "runs_as": RUNS_AS[ran.get(name) in INTEGER_KERNELS],
        }
        for name, precision in policy.items()
    }
