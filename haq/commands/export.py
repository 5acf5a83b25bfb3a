"""`haq export`: a policy of an experiment as a file, checked if asked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from haq.deployed.check import compare
from haq.edges.documents import read_json
from haq.export import ExportOptions, export, exporter
from haq.quant import QuantizedModel
from haq.quant.nested import map_tensors
from haq.training import TrainableModel
from haq.values.errors import InputError

if TYPE_CHECKING:
    from haq.experiment.experiment import Experiment
    from haq.values.policy import Policy


_PLAIN = ExportOptions()
_RANGE_SAMPLES = 128


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

    Returns:
        `file`, `format`, `bytes`; `measurement` on the search split and the `search_score` that the search found there,
        if the policy's file says so; with `check` also `check` (see `Comparison`) and,
        for onnx, `kernels`: layer -> its precision, and the operator that ONNX Runtime runs for it.

    Raises:
        InputError: the policy, the format or the file cannot be used.
    """
    if samples is not None and not check:
        raise InputError("--samples: is how many samples --check compares; add --check")
    chosen = exporter(format, options)
    if check and chosen.load is None:
        raise InputError(f"--check: {format} is a file for another tool, which has to run it; leave the option out")
    path, rung = policy_file(source), experiment.config.evaluator.rungs[-1]
    trains = rung not in ("ptq", "bn")
    if not trains:  # trained where it was scored, else where files are written and compared
        evaluator = experiment.config.evaluator.model_copy(update={"device": "cpu"})
        experiment = experiment.at(experiment.config.model_copy(update={"evaluator": evaluator}))
    policy = experiment.load_policy(path)
    model = experiment.fine_tuner.model if trains else experiment.quantized
    inputs = experiment.given_data.train.head(_RANGE_SAMPLES if options.integer_outputs else 2).inputs

    def write(file: Path) -> None:
        export(model, experiment.model, file, inputs=inputs, format=format, options=options)

    if isinstance(model, TrainableModel):
        model.apply(policy)
        _rehearse(write, out)
    measurement = experiment.evaluator("search", rung=rung)(policy)
    if not measurement.ok:
        raise InputError(f"{path}: the policy cannot be exported: {measurement.error}")
    write(out)
    document: dict[str, Any] = {"file": str(out), "format": format, "bytes": out.stat().st_size}
    document |= {"measurement": measurement.to_doc(), "search_score": _search_score(path)}
    if not check or chosen.load is None:
        return document
    split = experiment.data.search if samples is None else experiment.data.search.head(samples)
    batches = split.batches(experiment.config.evaluator.batch_size)
    comparison = compare(_on_cpu(model), chosen.load(out, experiment.model), batches, metric=experiment.metric)
    document["check"] = comparison.to_doc()
    if format == "onnx":
        document["kernels"] = _kernels(out, policy)
    return document


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
    from haq.export.onnx.run import kernels

    ran = kernels(file.read_bytes(), policy)
    return {name: {"precision": str(precision), "operator": ran.get(name, "?")} for name, precision in policy.items()}
