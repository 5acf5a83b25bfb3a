"""What metrics that look at one layer at a time share: its calls in the float model, and their replay in a format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from haq.quant.formats.base import Quantizer
from haq.quant.formats.half import Identity
from haq.quant.model import QuantizedModel
from haq.quant.nested import tensors_in
from haq.sensitivity.base import Batches, Formats, Progress, Scores
from haq.values.formats import Format

KINDS = ("weights", "activations")


@contextmanager
def float_model(model: QuantizedModel) -> Iterator[None]:
    """`model` in float for the block; afterwards its policy and compensations are back."""
    policy = model.policy
    biases = {name: layer.bias for name, layer in model.layers.items()}
    statistics = {
        name: (norm.running_mean.clone(), norm.running_var.clone())
        for name, norm in model.batch_norms.items()
        if norm.running_mean is not None and norm.running_var is not None
    }
    model.apply(None)
    try:
        yield
    finally:
        model.apply(policy)
        for name, layer in model.layers.items():
            layer.bias = biases[name]
        if statistics:
            model.set_batch_norm_statistics(statistics)


def float_weight(model: QuantizedModel, layer: str) -> nn.Parameter:
    """The weight of `layer` in the float model, batch norm apart. Call it while `model` is in float."""
    weight = model.layers[layer].weight
    assert isinstance(weight, nn.Parameter)
    return weight


def weight_in(model: QuantizedModel, layer: str, fmt: Format) -> Tensor:
    """The weight of `layer` in `fmt` as the float model would hold it: scaled back where batch norm is folded in.

    Call it while `model` is in float.
    """
    quantized, folded = model.quantized_weight(layer, fmt), model.float_weight(layer)
    own = float_weight(model, layer).detach()
    if torch.equal(folded, own):
        return quantized
    if torch.equal(folded, quantized):
        return own
    # Folding multiplies each output channel; a zero stays zero, whatever the factor.
    return torch.where(folded == 0, quantized, quantized * (own / folded))


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a layer in the float model.

    Attributes:
        layer: qualified name.
        module: the layer.
        args: what it was called with.
        kwargs: likewise.
        output: what it returned, apart from the graph.
    """

    layer: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor

    @property
    def input(self) -> Tensor:
        x = self.args[0] if self.args else self.kwargs["input"]
        assert isinstance(x, Tensor)
        return x.detach()

    @torch.no_grad()
    def replay(self, *, weight: Tensor | None = None, quantizer: Quantizer | None = None) -> Tensor:
        """The layer's output with another weight, or with its input quantized."""
        args, kwargs = self.args, self.kwargs
        if quantizer is not None and not isinstance(quantizer, Identity):
            x = quantizer(self.input)
            args, kwargs = ((x, *args[1:]), kwargs) if args else ((), {**kwargs, "input": x})
        # The class's own forward: the hooks of the module are for the model's calls, not for this one.
        with _holding(self.module, weight):
            output = self.module.forward(*args, **kwargs)
        assert isinstance(output, Tensor)
        return output


@contextmanager
def _holding(module: nn.Module, weight: Tensor | None) -> Iterator[None]:
    own = module.weight
    assert isinstance(own, nn.Parameter)
    if weight is not None:
        module.weight = nn.Parameter(weight, requires_grad=False)
    try:
        yield
    finally:
        module.weight = own


@dataclass(frozen=True, eq=False)
class OutputError:
    """What one format of a layer does to the output of one call.

    Attributes:
        kind: `weights` or `activations`.
        layer: qualified name.
        fmt: the format's name.
        output: in float.
        error: output with the weights or the input in this format, minus `output`.
    """

    kind: str
    layer: str
    fmt: str
    output: Tensor
    error: Tensor


def output_errors(model: QuantizedModel, call: LayerCall, formats: Formats) -> Iterator[OutputError]:
    """Replay a call in all formats of its layer: of the weights, then of the input."""
    name, output = call.layer, call.output
    weights, activations = formats.get(name, ((), ()))
    for fmt in weights:
        got = call.replay(weight=weight_in(model, name, fmt))
        yield OutputError("weights", name, fmt.name, output, got.sub_(output))
    for fmt in activations:
        got = call.replay(quantizer=model.activation_quantizer(name, fmt))
        yield OutputError("activations", name, fmt.name, output, got.sub_(output))


@contextmanager
def on_each_call(model: QuantizedModel, visit: Callable[[LayerCall, Tensor], Tensor | None]) -> Iterator[None]:
    """For the block, `visit(call, output)` at every call of a layer; what it returns, if anything, is the output."""

    def hook_for(name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            return visit(LayerCall(name, module, args, kwargs, output.detach()), output)

        return hook

    handles = [layer.register_forward_hook(hook_for(name), with_kwargs=True) for name, layer in model.layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def backward_once(
    model: QuantizedModel,
    inputs: Any,
    objective: Callable[[Any], Tensor],
    visit: Callable[[LayerCall, Tensor], None],
) -> None:
    """One forward and one backward pass: `visit(call, gradient of the objective by the output)`, last call first.

    No gradient of a parameter is computed or kept, whether it requires one or not; a layer that does not reach the
    objective is not visited. Memory: inputs and outputs of all calls, and one gradient at a time.

    Args:
        model: in float.
        inputs: of one batch.
        objective: of the outputs.
        visit: may replay the call.
    """
    anchor = torch.zeros((), device=model.device, requires_grad=True)
    final = False

    def pass_on(call: LayerCall, gradient: Tensor) -> None:
        # The objective may take gradients of its own on the way.
        if final:
            visit(call, gradient)

    def tap(call: LayerCall, output: Tensor) -> Tensor:
        # Adding a zero that wants a gradient makes the output part of the graph, whatever came before it, and leaves
        # the one in `call` alone when the model goes on in place.
        tapped = output + anchor.to(output.dtype)
        tapped.register_hook(partial(pass_on, call))  # type: ignore[no-untyped-call]
        return tapped

    with torch.enable_grad(), on_each_call(model, tap):
        value = objective(model(inputs))
    final = True
    torch.autograd.grad(value, anchor, allow_unused=True)


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs and targets on the model's device, and how many samples they are."""

    inputs: Any
    targets: Any
    count: int


def steps(model: QuantizedModel, batches: Batches, progress: Progress | None) -> Iterator[Batch]:
    """The batches, one after the other; reports progress after each."""
    todo = list(batches)
    for done, (inputs, targets) in enumerate(todo, 1):
        yield Batch(model.to_device(inputs), model.to_device(targets), len(next(tensors_in(inputs))))
        if progress is not None:
            progress(done, len(todo))


class Totals:
    """Sums per kind, layer and format, that become scores."""

    def __init__(self, formats: Formats) -> None:
        self._sums = {
            kind: {layer: {fmt.name: 0.0 for fmt in sorted(pair[index])} for layer, pair in formats.items()}
            for index, kind in enumerate(KINDS)
        }

    def add(self, kind: str, layer: str, fmt: str, value: float) -> None:
        self._sums[kind][layer][fmt] += value

    def scores(self, scale: float | Mapping[str, float] = 1.0) -> Scores:
        """The sums times `scale`, one factor or one per layer."""

        def scaled(layer: str, row: Mapping[str, float]) -> dict[str, float]:
            factor = scale if isinstance(scale, float) else scale[layer]
            return {fmt: factor * value for fmt, value in row.items()}

        weights, activations = (
            {layer: scaled(layer, row) for layer, row in self._sums[kind].items()} for kind in KINDS
        )
        return weights, activations
