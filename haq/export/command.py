"""`haq export`: a policy of an experiment as a file, checked if asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq.errors import InputError
from haq.export import ExportOptions, export, exporter
from haq.export.check import compare

if TYPE_CHECKING:
    from haq.experiment import Experiment


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
    """Write a policy of `experiment` to `out`, with the compensations that the experiment asks for.

    Args:
        experiment: gives model, data and quantization settings.
        source: a run folder or a policy file.
        out: the file to write.
        format: a name in `haq.export.EXPORTERS`.
        options: what the format is asked for beside.
        check: compare the file's outputs with the quantized model's, over the search split.
        samples: how many of the split, from its start; all by default.

    Returns:
        `file`, `format`, `bytes`; with `check` also `check` (see `Comparison`) and, for onnx, `kernels`: layer -> its
        precision, and the operator that ONNX Runtime runs for it.

    Raises:
        InputError: the policy, the format or the file cannot be used.
    """
    if samples is not None and not check:
        raise InputError("--samples: is how many samples --check compares; add --check")
    if (kind := experiment.config.evaluator.rungs[-1]) not in ("ptq", "bn"):
        raise InputError(
            f"evaluator.kind = {kind!r}: fine-tuned models are not exported yet; take one of kind 'ptq' or 'bn'"
        )
    chosen = exporter(format, options)
    if check and chosen.load is None:
        raise InputError(f"--check: {format} is a file for another tool, which has to run it; leave the option out")
    evaluator = experiment.config.evaluator.model_copy(update={"device": "cpu"})  # where files are written and compared
    experiment = experiment.at(experiment.config.model_copy(update={"evaluator": evaluator}))
    path = policy_file(source)
    measurement = experiment.evaluator("search")(experiment.load_policy(path))
    if not measurement.ok:
        raise InputError(f"{path}: the policy cannot be exported: {measurement.error}")
    model, quantized = experiment.model, experiment.quantized
    inputs = experiment.given_data.train.head(_RANGE_SAMPLES if options.integer_outputs else 2).inputs
    export(quantized, model, out, inputs=inputs, format=format, options=options)
    document: dict[str, Any] = {"file": str(out), "format": format, "bytes": out.stat().st_size}
    if not check or chosen.load is None:
        return document
    split = experiment.data.search if samples is None else experiment.data.search.head(samples)
    batches = split.batches(experiment.config.evaluator.batch_size)
    comparison = compare(quantized, chosen.load(out, model), batches, metric=experiment.metric)
    document["check"] = comparison.to_doc()
    if format == "onnx":
        from haq.export.onnx_run import kernels

        ran = kernels(out.read_bytes(), quantized.layers)
        document["kernels"] = {
            name: {"precision": str(precision), "operator": ran.get(name, "?")}
            for name, precision in (quantized.policy or {}).items()
        }
    return document
