"""What the float model gives as targets: its class probabilities, or its outputs as they are."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from haq.edges.user_code import guarded
from haq.quant.classes import class_axis as find_class_axis
from haq.quant.nested import call_model, joined, map_tensors
from haq.values.errors import InputError
from haq.zoo import UNLABELLED, DataSplits, Split

Kind = Literal["probabilities", "outputs"]
_KIND: dict[str, Kind] = {
    "cross_entropy": "probabilities",
    "kl_divergence": "probabilities",
    "negative_kl": "probabilities",
    "negative_perplexity": "probabilities",
    "mse": "outputs",
    "negative_mse": "outputs",
    "cosine": "outputs",
    "sqnr": "outputs",
}
"""Losses and metrics -> the targets that they compare with; those that are not there take either."""


def targets_kind(targets: str, *, loss: str, metric: str) -> Kind:
    """Which targets `data.targets` stands for.

    Args:
        targets: `float_model`: those that fit the loss; or `float_probabilities` or `float_outputs`.
        loss: `evaluator.loss`.
        metric: `evaluator.metric`.

    Raises:
        InputError: loss and metric want different ones, or both are the user's own, which say nothing.
    """
    if targets != "float_model":
        return "probabilities" if targets == "float_probabilities" else "outputs"
    wanted = {kind for name in (loss, metric) if (kind := _KIND.get(name)) is not None}
    if len(wanted) == 1:
        return wanted.pop()
    if wanted:
        fits = "'mse'" if _KIND[metric] == "outputs" else "'kl_divergence'"
        raise InputError(
            f"data.targets = 'float_model': evaluator.metric = {metric!r} compares {_KIND[metric]}, evaluator.loss = "
            f"{loss!r} {_KIND[loss]}; set evaluator.loss = {fits}, or another metric"
        )
    raise InputError(
        "data.targets = 'float_model': loss and metric do not say what they compare; set data.targets = "
        "'float_probabilities' (classes) or 'float_outputs' (values, embeddings)"
    )


def float_targets(
    model: nn.Module, data: DataSplits, *, batch_size: int, kind: Kind = "probabilities", class_axis: int | None = None
) -> DataSplits:
    """`data` with what `model` gives as targets.

    Args:
        model: in float.
        data: whose inputs it gets; labels, where there are any, say where the classes are.
        batch_size: samples per pass.
        kind: `probabilities`, the softmax of outputs that are one tensor of logits, or `outputs` as they are.
        class_axis: dimension of the classes; needed where nothing else says it.

    Raises:
        InputError: the model fails, or its outputs are not one tensor of logits, or nothing says where classes are.
    """

    def of(split: Split) -> Split:
        run = guarded(call_model, "data.targets = 'float_model': the model")
        with torch.no_grad():
            parts = [run(model, inputs) for inputs, _ in split.batches(batch_size)]
        outputs = map_tensors(Tensor.detach, joined(parts))
        if kind == "outputs":
            return Split(split.inputs, outputs)
        return Split(split.inputs, _probabilities(outputs, split.targets, class_axis))

    return DataSplits(*map(of, (data.train, data.search, data.test)))


def _probabilities(outputs: Any, labels: Any, class_axis: int | None) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.dim() < 2 or not outputs.is_floating_point():
        raise InputError(
            "data.targets = 'float_model': needs a model whose output is one tensor of logits [n, classes, ...]; for "
            "values, take evaluator.loss = 'mse' or data.targets = 'float_outputs'"
        )
    axis = find_class_axis(outputs, labels, given=class_axis, name="data.targets = 'float_model'")
    return outputs.float().softmax(axis)


def check_labels(data: DataSplits) -> None:
    """Raise where images have no labels.

    Raises:
        InputError: says what to do without.
    """
    for split in (data.train, data.search, data.test):
        if isinstance(split.targets, Tensor) and bool((split.targets == UNLABELLED).all()):
            raise InputError(
                "data: the images have no labels; put each class in a folder of its own, or compare with the float "
                "model: data.targets = 'float_model', evaluator.metric = 'agreement', evaluator.loss = 'kl_divergence'"
            )
