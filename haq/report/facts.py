"""The numbers of the report page as rows of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from haq.report.figures.marginal import marginal_data
from haq.report.figures.tradeoff import main_precision
from haq.report.units import TIE_ERRORS, amount, column, is_tie, metric_label, number, score
from haq.results.read import Run
from haq.results.schema import Breakdown, Entry, Result

_SPLITS = {"search split": "chooses the answer", "test split": "scored once, at the end"}
_NAMES = {"uniform": "best uniform within budget", "greedy": "greedy within budget"}


def tiles(run: Run) -> list[dict[str, str]]:
    """The four or five figures that matter most."""
    result, unit = run.result, run.result.score_unit
    answer, reference = result.answer, result.unquantized
    split, value, base = _scores(answer.test_score, reference.test_score, answer.score, reference.search_score)
    found = [{"value": score(value, unit), "text": f"{result.score_name} on the {split} split"}]
    if value is not None and base is not None:
        found.append(
            {"value": score(value - base, unit, signed=True), "text": f"against the float model ({score(base, unit)})"}
        )
    uniform = result.baselines.get("uniform")
    gain = difference(answer, uniform) if uniform is not None else None
    if gain is not None and uniform is not None:
        tie = " (tie)" if is_tie(gain, _errors(result, answer, uniform)) else ""
        text = f"against uniform {main_precision(uniform.policy)}, the best within the budget{tie}"
        found.append({"value": score(gain, unit, signed=True), "text": text})
    for row in budget_rows(result)[:2]:
        found.append({"value": row["used"], "text": f"{row['label'].lower()} of at most {row['limit']}"})
    bits = answer.costs.get("average_weight_bits")
    if bits is not None and "average_weight_bits" not in result.budgets and len(found) < 5:
        found.append({"value": number(bits, digits=3), "text": "weight bits on average"})
    return found


def _scores(
    test: float | None, base: float | None, search: float | None, search_base: float | None
) -> tuple[str, float | None, float | None]:
    return ("test", test, base) if test is not None else ("search", search, search_base)


def difference(a: Entry, b: Entry) -> float | None:
    """By how much `a` scores better than `b`: on the test split where both were tested, else on the search split."""
    if a.test_score is not None and b.test_score is not None:
        return a.test_score - b.test_score
    return a.score - b.score if a.score is not None and b.score is not None else None


def _errors(result: Result, a: Entry, b: Entry) -> tuple[float | None, float | None]:
    if a.test_score is not None and b.test_score is not None:
        return a.test_noise, b.test_noise
    return result.score_noise, result.score_noise


def policy_rows(result: Result) -> list[dict[str, Any]]:
    """Float model, answer and baselines, with their scores; `entry` is `None` where there is nothing to cost."""
    unit, reference = result.score_unit, result.unquantized
    rows: list[dict[str, Any]] = [
        {
            "kind": "float",
            "name": "float model",
            "test": score(reference.test_score, unit),
            "tie": False,
            "search": score(reference.search_score, unit),
            "ahead": _ahead_of_float(result),
            "entry": _float_entry(result),
        },
        *([_row(result, "eight_bit", "uniform 8 bit", result.eight_bit)] if result.eight_bit is not None else []),
        _row(result, "answer", "answer", result.answer),
    ]
    for kind, entry in result.baselines.items():
        name = _NAMES.get(kind, kind)
        if entry is None:
            rows.append(
                {
                    "kind": kind,
                    "name": f"{name}: none exists",
                    "test": "–",
                    "search": "–",
                    "ahead": "–",
                    "tie": False,
                    "entry": None,
                }
            )
        else:
            name = f"{name} ({main_precision(entry.policy)})" if kind == "uniform" else name
            rows.append(_row(result, kind, name, entry))
    return rows


def cost_columns(costs: Sequence[Mapping[str, float] | None], metrics: Sequence[str]) -> list[tuple[str, list[str]]]:
    """One (heading, texts) per metric for rows that cost `costs`; a dash where a row has no costs."""
    return [column(metric, [None if row is None else row.get(metric) for row in costs]) for metric in metrics]


def _float_entry(result: Result) -> Entry:
    known = result.unquantized
    return Entry(name="float", policy={}, costs=known.costs, score=known.search_score, test_score=known.test_score)


def _ahead_of_float(result: Result) -> str:
    entry = _float_entry(result)
    gain = difference(result.answer, entry)
    return "–" if gain is None else score(gain, result.score_unit, signed=True)


def _row(result: Result, kind: str, name: str, entry: Entry) -> dict[str, Any]:
    same = kind != "answer" and entry.policy.key == result.answer.policy.key
    gain = None if kind == "answer" or same else difference(result.answer, entry)
    test = score(entry.test_score, result.score_unit)
    if entry.test_score is not None and entry.test_noise:
        test += f" ± {number(entry.test_noise, digits=2)}"
    return {
        "kind": kind,
        "name": name,
        "test": test,
        "search": score(entry.score, result.score_unit),
        "ahead": "the same policy" if same else "" if gain is None else score(gain, result.score_unit, signed=True),
        "tie": gain is not None and is_tie(gain, _errors(result, result.answer, entry)),
        "entry": entry,
    }


def score_note(result: Result) -> str:
    """How large the noise is and what a tie is."""
    if not result.score_noise:
        return "The standard error of this score is not known, so that only equal scores are ties."
    return (
        f"± is one standard error; on the search split it is {number(result.score_noise, digits=2)}"
        f"{' points' if result.score_unit == '%' else ''}. "
        f"A difference of at most {TIE_ERRORS:g} standard errors is a tie. The search never saw the test split."
    )


def budget_rows(result: Result) -> list[dict[str, Any]]:
    """Each budget with what the answer uses of it."""
    words = {one.metric: one.words for one in marginal_data(result.marginal, result.objective)}
    rows = []
    for metric, limit in result.budgets.items():
        used = _used(result, metric)
        slack = None if used is None else limit - used
        share = "" if slack is None or not limit else f" ({number(100 * slack / limit, digits=2)} %)"
        rows.append(
            {
                "label": metric_label(metric),
                "limit": amount(metric, limit),
                "used": amount(metric, used),
                "slack": amount(metric, slack, digits=2) + share,
                "over": slack is not None and slack < -1e-9 * abs(limit),
                "more": words.get(metric, ""),
            }
        )
    return rows


def _used(result: Result, metric: str) -> float | None:
    if metric != "accuracy_drop":
        return result.answer.costs.get(metric)
    reference, own = result.unquantized.search_score, result.answer.score
    return None if reference is None or own is None else reference - own


def proof(result: Result) -> str:
    """What is proved about the predicted optimum."""
    best, bound = result.predicted_optimum, result.bound
    start = "Within the tables, "
    if best is None:
        return ""
    name = metric_label(result.objective).lower()
    if result.status == "optimal":
        text = f"{start}the least {name} is {amount(result.objective, best)}, proved optimal"
    else:
        gap = f"; at least {amount(result.objective, bound)} is unavoidable" if bound is not None else ""
        text = f"{start}the least {name} found is {amount(result.objective, best)}{gap}"
    own = result.answer.costs.get(result.objective)
    return f"{text}. The answer, chosen by measurement, has {amount(result.objective, own)}."


def layer_rows(run: Run, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """One row per layer: formats, shares of the work, cost and sensitivity."""
    layers = run.result.breakdown.layers
    macs, params = sum(layer.macs or 0 for layer in layers), sum(layer.params or 0 for layer in layers)
    most = {metric: max((layer.costs.get(metric, 0.0) for layer in layers), default=0.0) for metric in metrics}
    losses = [run.sensitivity(layer.name, layer.precision) for layer in layers]
    worst = max((loss for loss in losses if loss is not None), default=0.0)
    return [
        {
            "name": layer.name,
            "weight": layer.precision.weight.name,
            "activation": layer.precision.activation.name,
            "macs": _percent(layer.macs, macs),
            "params": _percent(layer.params, params),
            "shares": [_share(layer.costs.get(metric), most[metric]) for metric in metrics],
            "sensitivity": number(loss, digits=2),
            "sensitivity_share": _share(loss, worst),
        }
        for layer, loss in zip(layers, losses, strict=True)
    ]


def _percent(part: float | None, whole: float) -> str:
    return "–" if part is None or not whole else f"{100 * part / whole:.1f} %"


def _share(part: float | None, largest: float) -> float:
    return max(0.0, part / largest) if part is not None and largest > 0 else 0.0


def conversion_rows(breakdown: Breakdown) -> list[dict[str, Any]]:
    """One row per converted tensor and converted operand of an add or concat."""
    rows = [
        (one.tensor, one.producer, ", ".join(one.to), one.written, one.wanted, one.costs) for one in breakdown.switches
    ]
    rows += [(one.name, one.other, one.owner or "–", one.written, one.wanted, one.costs) for one in breakdown.joins]
    keys = ("name", "source", "target", "written", "wanted", "costs")
    return [dict(zip(keys, (row[0], row[1] or "network input", *row[2:]), strict=True)) for row in rows]


def method(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """(group, its facts as (name, value)) of how the numbers came about."""
    result, provenance, config = run.result, run.provenance, run.result.experiment
    failed = sum(not trial.measurement.ok for trial in run.trials)
    search = {
        **config.get("search", {}),
        "policies measured": result.trials or len(run.trials),
        "seed": config.get("seed"),
    }
    groups: dict[str, Mapping[str, Any]] = {
        "Model and data": {
            "model": config.get("model", {}),
            "data": config.get("data", {}),
            "samples": provenance.get("splits", {}),
        },
        "Score": _SPLITS | config.get("evaluator", {}),
        "Quantization": provenance.get("quantization") or config.get("quantization", {}),
        "Sensitivity": config.get("sensitivity", {}),
        "Search": search | ({"policies that failed": failed} if failed else {}),
        "Device figures": {"profile": result.device.name, "models": result.device.metrics, **result.device.provenance},
        "Seconds": {stage: f"{value:.3g}" for stage, value in result.seconds.items()},
        "Versions and hashes": {key: provenance[key] for key in ("date", "versions", "hashes") if key in provenance},
    }
    return [(group, facts) for group, values in groups.items() if (facts := list(flatten(values)))]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested values as (dotted name, text), what is empty left out."""
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            if value:
                yield name, ", ".join(map(str, value))
        elif value not in (None, ""):
            yield name, str(value)
