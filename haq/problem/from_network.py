"""From a network, a device and a space to the problem document: dense tables that need no model any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from haq.hardware.cost_model import CostModel, input_reader, require_metrics
from haq.problem.space import SearchSpace
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.network import FLOAT_WRITER, Join, LayerSpec, Network, Step, Tensor
from haq.values.trial import METRICS, Cost

PEAK = "peak_activation_bytes"
AVERAGE = "average_weight_bits"
SENSITIVITY = "sensitivity"

Sensitivity = Mapping[str, Mapping[str, float]]
"""Layer name -> precision as text (`w4a8`) -> predicted loss increase."""


def problem_document(
    network: Network,
    cost_model: CostModel,
    space: SearchSpace,
    *,
    sensitivity: Sensitivity | None = None,
    budgets: Mapping[str, float],
    objective: str,
    interactions: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The search problem as `haq solve` reads it (schema version 1).

    Args:
        network: the traced model.
        cost_model: prices every metric that it models; all of them are in the document.
        space: the choices of each layer.
        sensitivity: may be left out where neither the objective nor a budget needs it (0 everywhere then).
        budgets: metric, `average_weight_bits` or `sensitivity` -> upper bound in the metric's unit.
        objective: likewise, what to minimise.
        interactions: passed on as they are.

    Raises:
        InputError: a budget or objective that the device does not model, a missing or unusable sensitivity.
    """
    asked = (objective, *budgets)
    require_metrics(cost_model, asked)
    if sensitivity is None and SENSITIVITY in asked:
        raise InputError("a sensitivity table is needed where sensitivity is the objective or a budget")
    return {
        "schema_version": 1,
        "layers": [_layer(layer, network, cost_model, space, sensitivity) for layer in network.layers],
        "ties": [list(group) for group in space.ties],
        "activation_ties": [list(group) for group in space.activation_ties],
        "edges": [edge for join in network.joins for edge in _edges(join, cost_model, space)],
        "tensors": [
            *(row for tensor in network.tensors for row in _switches(tensor, cost_model, space)),
            *(row for join in network.joins for row in _input_joins(join, cost_model, space)),
        ],
        "peak": _peak(network, cost_model, space),
        "interactions": [dict(row) for row in interactions],
        "offsets": _in_float(network, cost_model),
        "budgets": dict(budgets),
        "objective": objective,
    }


def _in_float(network: Network, cost_model: CostModel) -> dict[str, float]:
    """What stays in float costs the same under every policy; metrics of which there is some."""
    metrics = [metric for metric in METRICS if metric in cost_model.metrics and metric != PEAK]
    costs = [cost_model.float_cost(part)[0] for part in network.float_parts]
    totals = {metric: float(sum(getattr(cost, metric) for cost in costs)) for metric in metrics}
    return {metric: value for metric, value in totals.items() if value}


def _layer(
    layer: LayerSpec, network: Network, cost_model: CostModel, space: SearchSpace, sensitivity: Sensitivity | None
) -> dict[str, Any]:
    metrics = [metric for metric in METRICS if metric in cost_model.metrics and metric != PEAK]
    share = layer.params / network.params if network.params else 0.0
    choices = []
    for precision in space.precisions[layer.name]:
        costs = cost_model.layer_cost(layer, precision).to_doc(metrics)
        costs[AVERAGE] = precision.weight.bits * share
        loss = 0.0 if sensitivity is None else _loss(sensitivity, layer.name, precision)
        choices.append({**precision.to_doc(), "sensitivity": loss, "costs": costs})
    return {"name": layer.name, "choices": choices}


def _loss(sensitivity: Sensitivity, layer: str, precision: Precision) -> float:
    try:
        return float(sensitivity[layer][str(precision)])
    except KeyError as error:
        raise InputError(f"the sensitivity table has no entry for layer {layer!r} in {precision}") from error


def _priced(
    cost: Callable[[Format, Format], Cost], rows: Sequence[Format], columns: Sequence[Format]
) -> dict[str, Any]:
    """Metric -> matrix, where anything in it is not 0; equal formats cost nothing."""
    costs = [[cost(row, column) if row != column else Cost() for column in columns] for row in rows]
    matrices = {metric: [[getattr(entry, metric) for entry in row] for row in costs] for metric in METRICS}
    return {metric: matrix for metric, matrix in matrices.items() if any(any(row) for row in matrix)}


def _activations(space: SearchSpace, layer: str) -> list[Format]:
    return [precision.activation for precision in space.precisions[layer]]


def _format_keys(formats: Sequence[Format]) -> dict[str, Any]:
    if all(fmt.is_integer for fmt in formats):
        return {"activation_bits": [fmt.bits for fmt in formats]}
    return {"activation_formats": [fmt.name for fmt in formats]}


def _switches(tensor: Tensor, cost_model: CostModel, space: SearchSpace) -> Iterable[dict[str, Any]]:
    """A tensor's copies: rows are the format it was written in, columns the format wanted."""
    if tensor.producer is None:
        rows = [] if cost_model.input_format is None else [cost_model.input_format]
    else:
        rows = _activations(space, tensor.producer)
    readers = list(dict.fromkeys(tensor.consumers))
    if not rows or not readers:
        return
    formats = sorted({*(fmt for name in readers for fmt in _activations(space, name))})
    if tensor.producer is not None:
        rows = formats = sorted({*rows, *formats})
    matrices = _priced(partial(cost_model.switch_cost, tensor), rows, formats)
    for metric, costs in matrices.items():
        keys = {"from": tensor.producer, "to": readers, "metric": metric, **_format_keys(formats)}
        yield {**keys, "costs": costs}


def _edges(join: Join, cost_model: CostModel, space: SearchSpace) -> Iterable[dict[str, Any]]:
    """A join's operands that other layers wrote: rows are the choices of that layer, columns those of the owner."""
    for other, elements in join.others:
        if other is None or join.owner is None or other == join.owner:
            continue
        cost = partial(_join_cost, cost_model, elements)
        matrices = _priced(cost, _activations(space, other), _activations(space, join.owner))
        for metric, costs in matrices.items():
            yield {"from": other, "to": join.owner, "metric": metric, "costs": costs}


def _join_cost(cost_model: CostModel, elements: int, written: Format, wanted: Format) -> Cost:
    return cost_model.join_cost(elements, wanted, written)


def _swapped(cost: Callable[[Format, Format], Cost], wanted: Format, written: Format) -> Cost:
    return cost(written, wanted)


def _input_joins(join: Join, cost_model: CostModel, space: SearchSpace) -> Iterable[dict[str, Any]]:
    """A join with a network input that arrives in a fixed format: only the layer on the other side has a choice."""
    given = cost_model.input_format
    for other, elements in join.others:
        layer = join.owner if other is None else other if join.owner is None else None
        if given is None or layer is None:
            continue
        formats = sorted(set(_activations(space, layer)))
        cost = partial(_join_cost, cost_model, elements)
        matrices = _priced(cost if other is None else partial(_swapped, cost), [given], formats)
        for metric, costs in matrices.items():
            yield {"from": None, "to": [layer], "metric": metric, **_format_keys(formats), "costs": costs}


def _peak(network: Network, cost_model: CostModel, space: SearchSpace) -> list[dict[str, Any]]:
    """The activation memory of each step; a step that needs what another one needs is left out."""
    steps: dict[str, dict[str, Any]] = {}
    for step in network.steps:
        document = _step(step, network, cost_model, space)
        content = {key: value for key, value in document.items() if key != "step"}
        steps.setdefault(repr(content), document)
    return list(steps.values())


def _step(step: Step, network: Network, cost_model: CostModel, space: SearchSpace) -> dict[str, Any]:
    fixed, live = 0.0, dict[str, list[float]]()
    for writer, elements in step.live:
        given = cost_model.input_format
        if writer == FLOAT_WRITER:
            fixed += cost_model.storage_bytes(elements, Format.parse("fp32"))
            continue
        layer = input_reader(network, elements) if writer is None and given is None else writer
        if layer is None:
            fixed += cost_model.storage_bytes(elements, given or Format.parse("fp32"))
            continue
        sizes = [cost_model.storage_bytes(elements, fmt) for fmt in _activations(space, layer)]
        live[layer] = [float(a + b) for a, b in zip(live.get(layer, [0.0] * len(sizes)), sizes, strict=True)]
    return {"step": step.name, "fixed": fixed, "live": live}
