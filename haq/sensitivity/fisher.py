"""Second-order prediction of the loss increase, from the Fisher information at each layer's output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from haq.quant.batch_norm import foldable_batch_norms
from haq.quant.model import QuantizedModel
from haq.quant.nested import map_tensors
from haq.sensitivity.base import Batches, Formats, Loss, Progress, Scores
from haq.sensitivity.local import Batch, LayerCall, Totals, backward_once, float_model, output_errors, steps
from haq.sensitivity.outputs import curvature_probe
from haq.trace.layers import channel_axis

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
        for batch in steps(model, batches, progress):
            for key, effect in _effects(model, formats, batch, loss, remaining, generator).items():
                totals.add(*key, batch.count * float(effect.square().sum()))
            samples += batch.count
    return totals.scores(0.5 / samples)


def _configured(model: QuantizedModel) -> Compensation:
    if model.quantization.batch_norm == "reestimate":
        return "batch_norm"
    return "bias" if model.quantization.bias_correction else "none"


def _effects(
    model: QuantizedModel,
    formats: Formats,
    batch: Batch,
    loss: Loss,
    remaining: _Remaining,
    generator: torch.Generator,
) -> dict[tuple[str, str, str], Tensor]:
    """Kind, layer and format -> dl/dY * (Y_q - Y) of each sample, summed over elements and over the layer's calls."""
    effects: dict[tuple[str, str, str], Tensor] = defaultdict(lambda: torch.zeros(batch.count))

    def objective(outputs: Any) -> Tensor:
        return curvature_probe(outputs, batch.targets, loss, samples=batch.count, generator=generator)

    def add(call: LayerCall, gradient: Tensor) -> None:
        remains = remaining.after(call)
        for found in output_errors(model, call, formats):
            effect = remains(found.error).mul_(gradient).float()
            # Samples may be spread over several rows (windows of an image), never the other way round.
            whole = len(effect) % batch.count == 0
            rows = effect.view(batch.count if whole else 1, -1, *effect.shape[1:])
            key = found.kind, found.layer, found.fmt
            effects[key] = effects[key] + rows.sum(list(range(1, rows.dim()))).cpu()

    backward_once(model, batch.inputs, objective, add)
    return effects


class _Remaining:
    """What is left of a layer's output error after compensation, per channel over the batch."""

    def __init__(self, model: QuantizedModel, compensation: Compensation) -> None:
        self._layers = model.layers
        self._centred = {name for name, layer in model.layers.items() if not isinstance(layer, nn.Embedding)}
        if compensation != "bias":
            self._centred = set()
        self._normalised: set[str] = set()
        if compensation == "batch_norm":
            sample = map_tensors(lambda tensor: tensor[:1], model.calibration[0])
            self._normalised = set(foldable_batch_norms(model.module, model.layers, lambda: model(sample)))

    def after(self, call: LayerCall) -> Callable[[Tensor], Tensor]:
        """What is left of an error of the call's output; works in place."""
        layer, output = call.layer, call.output
        if layer not in self._centred and layer not in self._normalised:
            return lambda error: error
        channel = channel_axis(self._layers[layer], output)
        others = [dim for dim in range(output.dim()) if dim != channel]

        def centred(values: Tensor) -> Tensor:
            return values.sub_(values.mean(others, keepdim=True))

        if layer in self._centred:
            return centred
        wanted = centred(output.clone())
        power = wanted.square().sum(others, keepdim=True)

        def normalised(error: Tensor) -> Tensor:
            got = centred(error).add_(wanted)
            noisy = got.square().sum(others, keepdim=True)
            return got.mul_(torch.where(noisy > 0, power / noisy, torch.ones_like(noisy)).sqrt_()).sub_(wanted)

        return normalised
