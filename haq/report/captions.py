"""What to see in each figure, in words that are computed from the same numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from haq.report.figures.bits import BitsData, bits_data
from haq.report.figures.costs import CostsData, costs_data, metrics_shown
from haq.report.figures.heatmap import SensitivityData, sensitivity_data
from haq.report.figures.marginal import MarginalData, marginal_data
from haq.report.figures.tradeoff import TradeoffData, prediction_data, ranked_right, tradeoff_data
from haq.report.units import amount, metric_label, number, score
from haq.results.read import Run
from haq.results.schema import Result


def captions(run: Run) -> dict[str, str]:
    """Figure name, as in `plots.figures`, -> caption."""
    result, policy = run.result, run.result.answer.policy
    found = {"accuracy": accuracy_caption(tradeoff_data(run)), "bits": bits_caption(bits_data(policy), result)}
    for metric in metrics_shown(result):
        found[f"costs_{metric}"] = costs_caption(costs_data(result.breakdown, metric))
    if run.sensitivities:
        found["sensitivity"] = sensitivity_caption(sensitivity_data(run.sensitivities, policy))
        found["prediction"] = prediction_caption(prediction_data(run))
    found["marginal"] = marginal_caption(marginal_data(result.marginal, result.objective))
    return found


def accuracy_caption(data: TradeoffData) -> str:
    """How many policies there are and how to read the marks."""
    points = data.panels[0].points if data.panels else ()
    text = (
        f"Every measured policy ({len(points)}), scored on the search split. The line is the Pareto front: no measured "
        "policy is both cheaper and better than one on it. The dashed vertical line is the budget. "
    )
    if data.noise:
        text += (
            f"The bar at the answer is one standard error ({score(data.noise, data.unit).removesuffix(' %')} points). "
        )
    return text + "Triangles at the lower edge are policies that score below the range shown."


def bits_caption(data: BitsData, result: Result) -> str:
    """Mean bits and how the formats are spread."""
    average = result.answer.costs.get("average_weight_bits")
    weights, activations = Counter(data.weights), Counter(data.activations)
    start = "Weight formats upwards, formats of the activations that a layer reads downwards. "
    mean = f"Weights take {number(average, digits=3)} bits on average over parameters. " if average is not None else ""
    return f"{start}{mean}Weights: {_spread(weights)}; activations: {_spread(activations)}."


def _spread(counts: Mapping[str, int]) -> str:
    parts = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} in {count} layer{'s' if count > 1 else ''}" for name, count in parts)


def costs_caption(data: CostsData) -> str:
    """The most expensive layers, and what conversions between formats take."""
    total = data.total or 1.0
    whole = [sum(parts) for parts in zip(data.own, data.switches, data.joins, strict=True)]
    top = sorted(range(len(whole)), key=lambda i: -whole[i])[:3]
    leaders = ", ".join(f"{data.layers[i]} ({100 * whole[i] / total:.0f} %)" for i in top)
    converted = sum(data.switches) + sum(data.joins)
    if not converted:
        between = "No layer pays for a conversion between formats."
    else:
        between = f"Conversions between formats (hatched) take {number(100 * converted / total, digits=2)} %."
    label = metric_label(data.metric)
    return f"{label} is {amount(data.metric, data.total)} in all; the largest parts: {leaders}. {between}"


def sensitivity_caption(data: SensitivityData) -> str:
    """The layers that bear the least and the most."""
    text = "Predicted increase of the loss when one layer alone takes a format; darker is worse, logarithmic scale. "
    values = data.values["weight"]
    if values.size and len(data.layers) > 1:
        order = [i for i in (-values[:, 0]).argsort() if values[i, 0] == values[i, 0]]
        if order:
            text += (
                f"In {data.formats['weight'][0]} weights, {data.layers[order[0]]} hurts most and "
                f"{data.layers[order[-1]]} least. "
            )
    return text + "Dots mark what the answer uses."


def prediction_caption(data: TradeoffData) -> str:
    """How far the prediction that the search relied on agrees with what was measured."""
    text = "The predicted loss increase that the search minimised, against the measured score. "
    share = ranked_right([(point.cost, point.score) for panel in data.panels for point in panel.points])
    if share is None:
        return text
    return f"{text}The prediction puts {100 * share:.0f} % of all pairs of policies in the order of their scores."


def marginal_caption(data: Sequence[MarginalData]) -> str:
    """What more of each budget buys."""
    text = "The best predicted objective for each budget (others held); the star is the current budget. "
    return text + " ".join(f"{metric_label(one.metric)}: {one.words}" for one in data)
