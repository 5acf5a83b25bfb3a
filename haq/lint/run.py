"""`haq lint`: all rules over an experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from haq.edges.progress import Reporter, Silent
from haq.experiment.experiment import Experiment
from haq.lint import activations, device
from haq.lint.context import Context
from haq.lint.findings import Finding
from haq.lint.measure import LossMeter
from haq.lint.observe import observe
from haq.quant import QuantizedModel
from haq.values.errors import InputError
from haq.values.formats import Precision

RULES: dict[str, Callable[[Context], Iterator[Finding]]] = {
    "channel_ranges": activations.channel_ranges,
    "weight_ranges": activations.weight_ranges,
    "long_tail": activations.long_tails,
    "unbounded_activation": activations.unbounded_activations,
    "squeeze_excitation": activations.gates,
    "depthwise": activations.depthwise,
    "join_ranges": activations.joins,
    "large_softmax": activations.large_softmax,
    "alignment": device.alignment,
    "switches": device.switches,
    "free_bits": device.free_bits,
}
"""Name -> rule."""
_SAMPLES = 256


def lint_experiment(
    experiment: Experiment,
    *,
    precision: str | None = None,
    samples: int = _SAMPLES,
    reporter: Reporter | None = None,
) -> list[Finding]:
    """What makes the experiment's network hard to quantize or slow on its device, the most expensive first.

    Losses are measured on samples of the train split, one thing quantized at a time.

    Args:
        experiment: model, data and device.
        precision: at which things are measured, e.g. `w4a4`; default: of each layer the lowest that the space has.
        samples: of the train split.
        reporter: shows progress.

    Raises:
        InputError: the experiment cannot be used, or `precision` is none.
    """
    show = reporter or Silent()
    experiment.check()
    model = experiment.quantized
    split = experiment.data.train.head(samples)
    batches = [
        (model.to_device(inputs), targets) for inputs, targets in split.batches(experiment.config.evaluator.batch_size)
    ]
    layers = {layer.name: layer for layer in experiment.network.layers}
    low = _low(experiment, precision)
    high = {name: max(choices) for name, choices in experiment.space.precisions.items()}
    seen = observe(model, [inputs for inputs, _ in batches])
    meter = LossMeter(model, batches, loss=experiment.loss, low=low)
    context = Context(experiment, layers, low, high, seen, meter, _samples(model, batches[0][0]))
    found: list[Finding] = []
    for index, (name, rule) in enumerate(RULES.items()):
        show.step(index, len(RULES))
        found += rule(context)
        show.note(f"{name}: {sum(finding.rule == name for finding in found)} findings")
    return sorted(found, key=lambda finding: (-finding.share, finding.rule, finding.layer))


def _low(experiment: Experiment, precision: str | None) -> dict[str, Precision]:
    space = experiment.space.precisions
    if precision is None:
        return {
            name: Precision(min(p.weight for p in choices), min(p.activation for p in choices))
            for name, choices in space.items()
        }
    try:
        chosen = Precision.parse(precision)
    except ValueError as error:
        raise InputError(f"--precision {precision}: {error}") from error
    return dict.fromkeys(space, chosen)


def _samples(model: QuantizedModel, inputs: Any) -> Mapping[str, Tensor]:
    """Layer -> what it reads of one batch, at most 65,536 values."""
    kept: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            flat = x.detach().flatten()
            kept.setdefault(name, flat[:: max(1, len(flat) // 2**16)].clone())

        return keep

    handles = [module.register_forward_pre_hook(hook(name), with_kwargs=True) for name, module in model.layers.items()]
    try:
        with torch.no_grad():
            model.apply(None)
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return kept
