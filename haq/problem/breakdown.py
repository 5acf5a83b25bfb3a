"""The addends of a metric under a policy, for reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from haq.problem.document import SENSITIVITY, ProblemDoc, TensorDoc, tensor_formats
from haq.values.formats import Format
from haq.values.policy import Policy


@dataclass(frozen=True, slots=True)
class Contribution:
    """One addend of a metric under a policy.

    Attributes:
        kind: `layer`, `edge`, `tensor`, `interaction`, `offset`, or `step` (of which peak memory is the maximum).
        name: the layer, `a -> b`, or the step.
        value: in the metric's unit.
    """

    kind: str
    name: str
    value: float


def contributions(doc: ProblemDoc, chosen: Mapping[str, int], policy: Policy, metric: str) -> Iterator[Contribution]:
    """The addends of an additive metric, in document order.

    Args:
        doc: the problem.
        chosen: choice index of each layer.
        policy: the same as precisions.
        metric: not peak memory.
    """
    for layer in doc.layers:
        choice = layer.choices[chosen[layer.name]]
        value = choice.sensitivity if metric == SENSITIVITY else choice.costs.get(metric, 0.0)
        yield Contribution("layer", layer.name, value)
    for edge in doc.edges:
        if edge.metric == metric:
            value = edge.costs[chosen[edge.source]][chosen[edge.target]]
            yield Contribution("edge", f"{edge.source} -> {edge.target}", value)
    for tensor in doc.tensors:
        if tensor.metric == metric:
            yield from _copies(tensor, policy)
    if metric == SENSITIVITY:
        for pair in doc.interactions:
            first, second = pair.between
            yield Contribution("interaction", f"{first} x {second}", pair.costs[chosen[first]][chosen[second]])
    if metric in doc.offsets:
        yield Contribution("offset", "offset", doc.offsets[metric])


def _copies(tensor: TensorDoc, policy: Policy) -> Iterator[Contribution]:
    """One addend per distinct format among the readers."""
    codes = {name: code for code, name in enumerate(tensor_formats(tensor))}
    row = 0 if tensor.source is None else codes[policy[tensor.source].activation]
    wanted: dict[Format, list[str]] = {}
    for name in dict.fromkeys(tensor.targets):
        wanted.setdefault(policy[name].activation, []).append(name)
    for written_as, names in wanted.items():
        label = f"{tensor.source or 'input'} -> {', '.join(names)}"
        yield Contribution("tensor", label, tensor.costs[row][codes[written_as]])
