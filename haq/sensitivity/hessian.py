"""Average Hessian trace times squared perturbation (HAWQ-V2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from haq.quant.formats.half import Identity
from haq.quant.model import QuantizedModel
from haq.sensitivity.base import Batches, Formats, Loss, Progress, Scores
from haq.sensitivity.local import KINDS, LayerCall, Totals, float_model, float_weight, on_each_call, steps, weight_in
from haq.sensitivity.probes import hessian_times, rademacher
from haq.values.formats import Format


def score(
    model: QuantizedModel,
    formats: Formats,
    batches: Batches,
    *,
    loss: Loss,
    seed: int = 0,
    progress: Progress | None = None,
    probes: int = 8,
) -> Scores:
    """Tr(H)/n * ||Q(W) - W||^2, with H the Hessian of the mean loss by the n weights W of the layer.

    HAWQ-V2 (Dong et al., NeurIPS 2020), equation 6. For activations likewise: the trace by the layer's input and the
    squared error of that input, both means over samples, n its elements per sample. A negative trace counts as 0.

    Args:
        model: to score.
        formats: to score.
        batches: to average over.
        loss: twice differentiable.
        seed: of the probes.
        progress: called after each batch.
        probes: Hessian-vector products per batch and kind, each for all layers at once.
    """
    totals, todo = Totals(formats), list(batches)
    with float_model(model):
        traces = hessian_traces(model, formats, todo, loss=loss, probes=probes, seed=seed, progress=progress)
        for layer, (weights, _) in formats.items():
            for fmt in weights:
                error = weight_in(model, layer, fmt) - float_weight(model, layer).detach()
                totals.add("weights", layer, fmt.name, max(0.0, traces["weights"][layer]) * float(error.square().sum()))
        for layer, name, squared in _input_errors(model, formats, todo):
            totals.add("activations", layer, name, max(0.0, traces["activations"][layer]) * squared)
    return totals.scores()


def hessian_traces(
    model: QuantizedModel,
    layers: Iterable[str],
    batches: Batches,
    *,
    loss: Loss,
    probes: int,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Average Hessian trace, Tr(H)/n, by the weights and by the input of each layer, of the float model.

    Hutchinson's estimator E[v' H v] with Rademacher probes v: a probe has entries for all layers, whose products with
    other layers' entries are zero on average.

    Returns:
        `weights` and `activations`: layer -> average trace; below 0 where the loss curves downwards, or by chance.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, dict[str, float]] = {kind: defaultdict(float) for kind in KINDS}
    samples = 0
    for batch in steps(model, batches, progress):
        with _leaves(model, layers) as leaves, torch.enable_grad():
            value = loss(model(batch.inputs), batch.targets)
            for kind in KINDS:
                for layer, estimate in _estimates(value, leaves[kind], probes, generator):
                    # The mean loss of n samples has 1/n of each one's Hessian by its input: the sum is the mean trace.
                    elements = sum(leaf.numel() for leaf in leaves[kind][layer])
                    size = elements if kind == "weights" else elements / batch.count
                    sums[kind][layer] += batch.count * estimate / size
        samples += batch.count
    return {kind: {layer: sums[kind][layer] / samples for layer in layers} for kind in KINDS}


def _estimates(
    value: Tensor, leaves: dict[str, list[Tensor]], probes: int, generator: torch.Generator
) -> Iterator[tuple[str, float]]:
    """Layer and mean of v' H v over the probes, H the Hessian of `value` by the layer's leaves."""
    flat = [(layer, leaf) for layer, tensors in leaves.items() for leaf in tensors]
    tensors = [leaf for _, leaf in flat]
    gradients = torch.autograd.grad(value, tensors, create_graph=True, materialize_grads=True)
    for _ in range(probes):
        vs = [rademacher(leaf, generator) for leaf in tensors]
        products = hessian_times(gradients, tensors, vs)
        for (layer, _), v, product in zip(flat, vs, products, strict=True):
            yield layer, float((v * product).sum()) / probes


def _input_errors(model: QuantizedModel, formats: Formats, batches: Batches) -> Iterator[tuple[str, str, float]]:
    """Layer, format and squared error of the layer's input, the mean over samples."""
    sums: dict[tuple[str, Format], float] = defaultdict(float)
    samples = 0

    def visit(call: LayerCall, output: Tensor) -> None:
        if call.layer in formats:
            for fmt in formats[call.layer][1]:
                quantizer = model.activation_quantizer(call.layer, fmt)
                exact = isinstance(quantizer, Identity)
                sums[call.layer, fmt] += 0.0 if exact else float((quantizer(call.input) - call.input).square().sum())

    with torch.no_grad(), on_each_call(model, visit):
        for batch in steps(model, batches, None):
            model(batch.inputs)
            samples += batch.count
    for (layer, fmt), total in sums.items():
        yield layer, fmt.name, total / samples


@contextmanager
def _leaves(model: QuantizedModel, layers: Iterable[str]) -> Iterator[dict[str, dict[str, list[Tensor]]]]:
    """For the block, weights and inputs of `layers` are leaves of the graph, by kind and layer; inputs fill as read."""
    own = {layer: float_weight(model, layer) for layer in layers}
    weights = {layer: nn.Parameter(weight.detach()) for layer, weight in own.items()}
    inputs: dict[str, list[Tensor]] = {layer: [] for layer in own}

    def hook_for(layer: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = args[0] if args else kwargs.get("input")
            if x is None or not x.is_floating_point():  # a table reads indices
                return None
            leaf = torch.zeros_like(x, requires_grad=True)
            inputs[layer].append(leaf)
            return ((x + leaf, *args[1:]), kwargs) if args else ((), {**kwargs, "input": x + leaf})

        return hook

    handles = [model.layers[layer].register_forward_pre_hook(hook_for(layer), with_kwargs=True) for layer in own]
    for layer, weight in weights.items():
        model.layers[layer].weight = weight
    try:
        yield {"weights": {layer: [weight] for layer, weight in weights.items()}, "activations": inputs}
    finally:
        for handle in handles:
            handle.remove()
        for layer, weight in own.items():
            model.layers[layer].weight = weight
