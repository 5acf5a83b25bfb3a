"""Second-order prediction of the loss increase, from the Fisher information at each layer's output."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from haq.quant.batch_norm import foldable_batch_norms
from haq.quant.model import QuantizedModel
from haq.sensitivity.base import Batches, Formats, Loss, Progress, Scores
from haq.sensitivity.local import Totals, float_model, score_errors, steps
from haq.sensitivity.outputs import curvature_probe

Compensation = Literal["none", "bias", "batch_norm"]


def score(
    model: QuantizedModel,
    formats: Formats,
    batches: Batches,
    *,
    loss: Loss,
    seed: int = 0,
    progress: Progress | None = None,
    compensation: Compensation | None = None,
) -> Scores:
    """Half the mean over samples of (sum over elements of dl/dY * (Y_q - Y))^2, at each layer's output Y.

    l is a random scalar of the outputs whose squared derivatives are, on average, the curvature of the loss by the
    outputs (`curvature_probe`). So the score is dY' G dY / 2 with G the Gauss-Newton matrix at Y, for logits the Fisher
    information (Martens, "New insights and perspectives on the natural gradient method", JMLR 2020, sections 8 and 9):
    the second-order term of the loss increase, and of the KL divergence of the outputs, in the unit of the loss. One
    backward pass serves all layers, each format is replayed on the layer's own float input.

    What is made up for after quantization is left out of the error.

    Args:
        model: to score.
        formats: to score.
        batches: to average over.
        loss: a mean over samples.
        seed: of the probes.
        progress: called after each batch.
        compensation: `bias`: means per channel will be corrected; `batch_norm`: mean and variance per channel will be
            re-estimated, where a batch norm follows; `none`. Default: what the model's quantization settings say.
    """
    totals, samples = Totals(formats), 0
    generator = torch.Generator().manual_seed(seed)

    with float_model(model):
        remaining = _Remaining(model, compensation or _configured(model))
        for inputs, targets, count in steps(model, batches, progress):
            effects = _Effects(count, remaining)

            def probe(outputs: Any, targets: Any = targets, count: int = count) -> Tensor:
                return curvature_probe(outputs, targets, loss, samples=count, generator=generator)

            score_errors(model, formats, inputs, probe, effects.add)
            for key, effect in effects.per_sample.items():
                totals.add(*key, count * float(effect.square().sum()))
            samples += count
    return totals.scores(0.5 / samples)


def _configured(model: QuantizedModel) -> Compensation:
    if model.quantization.batch_norm == "reestimate":
        return "batch_norm"
    return "bias" if model.quantization.bias_correction else "none"


class _Effects:
    """First-order effects on the loss of each sample of one batch, summed over elements and calls."""

    def __init__(self, count: int, remaining: _Remaining) -> None:
        self.per_sample: dict[tuple[str, str, str], Tensor] = defaultdict(lambda: torch.zeros(count))
        self._count = count
        self._remaining = remaining

    def add(self, kind: str, layer: str, fmt: str, output: Tensor, error: Tensor, gradient: Tensor) -> None:
        effect = (self._remaining(layer, output, error) * gradient).float()
        rows = effect.reshape(self._count, -1) if len(effect) % self._count == 0 else effect.reshape(1, -1)
        self.per_sample[kind, layer, fmt] = self.per_sample[kind, layer, fmt] + rows.sum(1).cpu()


class _Remaining:
    """What is left of a layer's output error after compensation, per channel over the batch."""

    def __init__(self, model: QuantizedModel, compensation: Compensation) -> None:
        self._layers = model.layers
        self._centred = set(model.layers) if compensation == "bias" else set()
        self._normalised: set[str] = set()
        if compensation == "batch_norm":
            forward = partial(model, model.calibration[0])
            self._normalised = set(foldable_batch_norms(model.module, model.layers, forward))

    def __call__(self, layer: str, output: Tensor, error: Tensor) -> Tensor:
        if layer not in self._centred and layer not in self._normalised:
            return error
        channel = error.dim() - 1 if isinstance(self._layers[layer], nn.Linear) else 1
        others = [dim for dim in range(error.dim()) if dim != channel]
        error = error - error.mean(others, keepdim=True)
        if layer in self._centred:
            return error
        wanted = output - output.mean(others, keepdim=True)
        got = wanted + error
        power, noisy = (x.square().sum(others, keepdim=True) for x in (wanted, got))
        return got * torch.where(noisy > 0, power / noisy, torch.ones_like(noisy)).sqrt() - wanted
