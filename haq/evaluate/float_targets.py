"""The float model's own class probabilities as targets, where data have no labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from haq.edges.user_code import guarded
from haq.quant.nested import call_model
from haq.values.errors import InputError
from haq.zoo import UNLABELLED, DataSplits, Split


def float_targets(model: nn.Module, data: DataSplits, *, batch_size: int) -> DataSplits:
    """`data` with the softmax of `model`'s outputs, `[n, classes, ...]`, as targets.

    Raises:
        InputError: the model fails, or its outputs are not one tensor of logits.
    """

    def of(split: Split) -> Split:
        run = guarded(call_model, "data.targets = 'float_model': the model")
        with torch.no_grad():
            outputs = [run(model, inputs) for inputs, _ in split.batches(batch_size)]
        if not isinstance(outputs[0], Tensor) or outputs[0].dim() < 2 or not outputs[0].is_floating_point():
            raise InputError(
                "data.targets = 'float_model': needs a model whose output is one tensor of logits [n, classes, ...]"
            )
        return Split(split.inputs, torch.cat(outputs).softmax(1))

    return DataSplits(*map(of, (data.train, data.search, data.test)))


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
