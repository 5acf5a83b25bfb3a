"""Budgets as numbers: percentages of what uniform 8 bit costs, and the drop of the score that is allowed."""

from __future__ import annotations

from collections.abc import Mapping

from haq.hardware import CostModel
from haq.hardware.costs import cost_report
from haq.problem.settings import Bound
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.network import Network
from haq.values.policy import Policy


def nearest_to_8_bit(network: Network, cost_model: CostModel) -> Policy:
    """Uniform 8 bit where the device can, else the nearest it supports: what percentages refer to."""
    wanted = Precision.parse("w8a8")

    def nearest(layer: str) -> Precision:
        supported = cost_model.supported(network[layer])
        distance = {p: abs(p.weight.bits - 8) + abs(p.activation.bits - 8) for p in supported}
        return wanted if wanted in supported else min(supported, key=lambda p: (distance[p], str(p)))

    return Policy({name: nearest(name) for name in network.layer_names})


def resolved_bound(key: str, value: Bound, network: Network, cost_model: CostModel, reference: Policy) -> float:
    """The number that a budget comes to.

    Args:
        key: of the budget.
        value: a number in the metric's unit, or a percentage of what `reference` costs.
        network: the traced model.
        cost_model: the device's.
        reference: see `nearest_to_8_bit`.

    Raises:
        InputError: a list of bounds, or a percentage of what is not modelled.
    """
    if isinstance(value, tuple):
        raise InputError(
            f"budgets.{key} lists several bounds, which only haq search takes; choose one: --set budgets.{key}=..."
        )
    if not isinstance(value, str):
        return float(value)
    share = float(value.removesuffix("%")) / 100.0
    if key == "average_weight_bits":
        return 8.0 * share
    if key == "sensitivity":
        raise InputError('budgets.sensitivity: a predicted loss is no share of 8 bit; give a number, not "..%"')
    totals = cost_report(network, cost_model, reference).totals
    if key not in totals:
        raise InputError(f"budgets.{key}: {cost_model.name} does not model it; it models {', '.join(totals)}")
    return share * totals[key]


def allowed_drop(budgets: Mapping[str, Bound]) -> float | None:
    """Points of the score that `budgets.accuracy_drop` allows to lose, `None` without that budget.

    Raises:
        InputError: it is not a number of points.
    """
    drop = budgets.get("accuracy_drop")
    if isinstance(drop, str | tuple):
        raise InputError(f"budgets.accuracy_drop = {drop!r}: give points of the score as a number, such as 1.0")
    return drop
