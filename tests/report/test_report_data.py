"""The numbers behind the figures."""

from __future__ import annotations

import colorsys
import json
import math
from pathlib import Path

import numpy as np
import pytest
from fake_run import write_fake_run
from hypothesis import given, settings
from hypothesis import strategies as st

from haq.report.compare import progress_data
from haq.report.figures.bits import bits_data
from haq.report.figures.costs import OUTSIDE, costs_data, metrics_shown
from haq.report.figures.heatmap import sensitivity_data
from haq.report.figures.marginal import MarginalData, marginal_data
from haq.report.figures.style import format_color, label, rgb, rows_of_layers, sorted_formats, text_on
from haq.report.figures.tradeoff import Panel, Point, pareto_front, ranked_right, score_range, tradeoff_data
from haq.report.units import amount, column, is_tie, number, score
from haq.results.read import Run, load_run
from haq.results.schema import Breakdown, Marginal
from haq.values.formats import Precision
from haq.values.policy import Policy

_POINT = st.tuples(st.integers(0, 6), st.integers(0, 6))


@settings(max_examples=150, deadline=None)
@given(st.lists(_POINT, max_size=12))
def test_pareto_front_is_the_brute_force_set_of_undominated_points(points: list[tuple[int, int]]) -> None:
    def dominated(p: tuple[int, int]) -> bool:
        return any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)

    front = [points[i] for i in pareto_front(points)]
    assert front == sorted({p for p in points if not dominated(p)})


def test_pareto_front_takes_the_first_of_equal_points() -> None:
    assert pareto_front([(2, 5), (1, 3), (1, 3), (2, 5)]) == [1, 0]


@settings(max_examples=60, deadline=None)
@given(st.lists(_POINT, max_size=10))
def test_ranked_right_counts_pairs(points: list[tuple[int, int]]) -> None:
    pairs = [(a, b) for i, a in enumerate(points) for b in points[i + 1 :] if a[0] != b[0] and a[1] != b[1]]
    right = sum((a[0] < b[0]) == (a[1] > b[1]) for a, b in pairs)
    assert ranked_right(points) == (pytest.approx(right / len(pairs)) if pairs else None)


def test_tradeoff_counts_every_policy_once_and_drops_failed_trials(run: Run) -> None:
    panels = tradeoff_data(run).panels
    named = [run.result.answer, *run.result.references, *filter(None, run.result.baselines.values())]
    keys = {entry.policy.key for entry in named}
    trials = [t for t in run.trials if t.measurement.ok and t.policy.key not in keys]
    assert sum(not t.measurement.ok for t in run.trials) == 2
    assert len(panels[0].points) == len(named) + len(trials)
    assert panels[0].points[-1].kind == "answer"


def test_tradeoff_puts_the_budgeted_metric_first(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path, layers=3, metrics=("bops", "size_bytes"), trials=2)
    data = tradeoff_data(load_run(folder))
    assert [panel.metric for panel in data.panels] == ["bops", "size_bytes", "average_weight_bits"]
    assert [panel.budget is None for panel in data.panels] == [False, True, True]


def _panel(**kinds: list[float]) -> Panel:
    return Panel(
        "m", tuple(Point(kind, "", 1.0, value) for kind, values in kinds.items() for value in values), (), None
    )


def test_score_range_leaves_policies_at_chance_level_out() -> None:
    low, high = score_range([_panel(answer=[92.0], greedy=[91.0], uniform=[25.0], trial=[10.0, 92.5])], noise=0.3)
    assert high == 92.5
    assert 85 < low < 91


def test_score_range_shows_everything_where_scores_are_close() -> None:
    panel = _panel(answer=[92.0], uniform=[91.8], trial=[91.5, 92.5])
    assert score_range([panel], lines=[93.0], noise=0.5) == (91.5, 93.0)


@pytest.mark.parametrize("scores", [{}, {"answer": [5.0]}, {"trial": [5.0, 5.0]}], ids=["none", "one", "equal"])
def test_score_range_is_never_empty(scores: dict[str, list[float]]) -> None:
    low, high = score_range([_panel(**scores)])
    assert low < high


def test_bits_data_keeps_network_order() -> None:
    policy = Policy({"z": Precision.parse("w2a8"), "a": Precision.parse("wternaryafp16")})
    data = bits_data(policy)
    assert (data.layers, data.weights, data.activations) == (("z", "a"), ("int2", "ternary"), ("int8", "fp16"))


def test_costs_data_adds_up_to_the_predicted_total(run: Run) -> None:
    data = costs_data(run.result.breakdown, "latency_ms")
    join = run.result.breakdown.joins[0].costs["latency_ms"]
    assert data.total - join == pytest.approx(run.result.answer.costs["latency_ms"])
    assert sum(value > 0 for value in data.switches) == len(run.result.breakdown.switches) > 0


def test_costs_data_places_conversions() -> None:
    layers = [{"name": name, "precision": "w4a4", "costs": {"latency_ms": 1.0}} for name in "abc"]
    conversion = {"written": "int8", "wanted": "int4", "costs": {"latency_ms": 0.25}}
    document = {
        "layers": layers,
        "switches": [{"tensor": "t", "from": "a", "to": ["c", "b"], **conversion}],
        "joins": [
            {"name": "add", "owner": "b", "other": "a", **conversion},
            {"name": "add_1", "owner": None, "other": "a", **conversion},
            {"name": "add_2", "owner": None, "other": None, **conversion},
        ],
    }
    data = costs_data(Breakdown.model_validate(document), "latency_ms")
    assert data.layers == ("a", "b", "c", OUTSIDE)
    assert data.switches == (0, 0, 0.25, 0)
    assert data.joins == (0.25, 0.25, 0, 0.25)
    assert data.total == 4.0


@pytest.mark.parametrize(
    ("budgets", "shown"),
    [
        (["latency_ms"], ["latency_ms"]),
        (["size_bytes", "latency_ms"], ["latency_ms", "size_bytes"]),
        (["peak_activation_bytes"], ["latency_ms"]),
        (["average_weight_bits"], ["size_bytes"]),
        (["sensitivity"], ["latency_ms"]),
    ],
    ids=lambda value: "+".join(value),
)
def test_metrics_shown_are_the_budgeted_sums(run: Run, budgets: list[str], shown: list[str]) -> None:
    result = run.result.model_copy(update={"budgets": dict.fromkeys(budgets, 1.0)})
    assert metrics_shown(result) == shown


def test_sensitivity_data_lines_table_and_policy_up() -> None:
    table = {
        ("a", "weight"): {"int8": 0.1, "int2": 4.0},
        ("b", "weight"): {"int4": 1.0},
        ("b", "activation"): {"int8": 2.0},
    }
    policy = Policy({"a": Precision.parse("w2a8"), "b": Precision.parse("w8a8")})
    data = sensitivity_data(table, policy)
    assert data.formats == {"weight": ("int2", "int4", "int8"), "activation": ("int8",)}
    np.testing.assert_array_equal(data.values["weight"], [[4.0, math.nan, 0.1], [math.nan, 1.0, math.nan]])
    assert data.chosen == {"weight": (0, 2), "activation": (0, 0)}
    assert sensitivity_data(table).chosen["weight"] == (None, None)


def _curve(*points: tuple[float, float], metric: str = "latency_ms", budget: float = 1.0) -> MarginalData:
    return MarginalData(metric, "sensitivity", budget, points)


def test_marginal_says_what_a_round_amount_more_buys() -> None:
    data = _curve((0.9, 8.0), (1.0, 6.0), (1.2, 4.0))
    assert (data.current, data.step) == (6.0, 0.1)
    assert data.gain == pytest.approx(1.0)
    assert data.words == "100 µs more would buy about 17 % less predicted loss increase (5)."


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (((0.9, 6.0), (1.0, 6.0), (1.2, 6.0)), "More would buy nothing."),
        (((0.9, 6.0), (1.0, 6.0)), "What more would buy was not computed."),
        (((1.1, 6.0), (1.2, 6.0)), "What more would buy was not computed."),
        ((), "What more would buy was not computed."),
    ],
    ids=["flat", "no larger budget", "no current optimum", "no points"],
)
def test_marginal_words_at_the_edges(points: tuple[tuple[float, float], ...], words: str) -> None:
    assert _curve(*points).words == words


def test_marginal_data_leaves_out_budgets_that_cannot_be_met() -> None:
    document = {"budget": 2.0, "points": [{"budget": 2.0, "objective": 1.0}, {"budget": 1.0, "objective": None}]}
    (data,) = marginal_data({"size_bytes": Marginal.model_validate(document)}, "sensitivity")
    assert data.points == ((2.0, 1.0),)


@given(st.floats(1e-6, 1e12))
@settings(max_examples=50, deadline=None)
def test_marginal_step_is_a_small_share_of_the_budget(budget: float) -> None:
    for metric in ("latency_ms", "size_bytes"):
        assert 0.02 * (1 - 1e-6) <= _curve(metric=metric, budget=budget).step / budget <= 0.2 * (1 + 1e-6)


def test_progress_is_the_running_best_of_the_search_alone(run: Run) -> None:
    scores = [t.measurement.score for t in run.trials if t.source == run.strategy and t.measurement.ok]
    curve = progress_data(run)
    assert [best for _, best in curve][: len(scores)] == list(np.maximum.accumulate(scores))
    assert len(curve) == len(run.trials)


@pytest.mark.parametrize("count", [1, 8, 22, 48, 49, 150, 200, 1000, 5000])
def test_rows_hold_every_layer_once(count: int) -> None:
    rows = rows_of_layers(count)
    assert [i for row in rows for i in row] == list(range(count))
    assert len(rows) <= 8


def _seen_by_deuteranopes(color: str) -> np.ndarray:
    """Linear RGB as seen with deuteranopia (Machado, Oliveira and Fernandes, 2009, severity 1.0)."""
    channels = np.array(rgb(color)) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    matrix = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    return np.clip(np.array(matrix) @ linear, 0, 1) ** (1 / 2.2)


def test_format_colors_differ_for_colour_blind_readers() -> None:
    names = ["int2", "int3", "int4", "int8", "int16", "ternary", "fp16", "fp32"]
    seen = {name: _seen_by_deuteranopes(format_color(name)) for name in names}
    closest = min((np.linalg.norm(seen[a] - seen[b]), a, b) for a in names for b in names if a < b)
    assert closest[0] > 0.12, closest


def test_fewer_bits_are_warmer() -> None:
    hues = [colorsys.rgb_to_hsv(*(c / 255 for c in rgb(format_color(f"int{bits}"))))[0] for bits in range(2, 9)]
    assert hues == sorted(hues)
    assert hues[0] < 0.05 < 0.55 < hues[-1]


def test_text_on_picks_the_readable_colour() -> None:
    assert (text_on("#ffffff"), text_on("#26408b"), text_on("#f3dc7c")) == ("#000000", "#ffffff", "#000000")


def test_formats_are_sorted_by_bits() -> None:
    assert sorted_formats(["fp16", "int8", "binary", "int8", "int2"]) == ["binary", "int2", "int8", "fp16"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a$b$", r"a\$b\$"), ("a\nb\x00", "a b "), ("0123456789" * 3, "0123456…" + ("0123456789" * 3)[-16:])],
    ids=["dollar", "control", "long"],
)
def test_labels_are_safe(text: str, shown: str) -> None:
    assert label(text) == shown


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (amount("latency_ms", 4.25), "4.25 ms"),
        (amount("size_bytes", 18432), "18 KiB"),
        (amount("bops", 2.5e9), "2.5 GBOPs"),
        (amount("latency_ms", None), "–"),
        (number(-0.00123456), "−0.001235"),
        (number(3.2e-7), "3.200e-07"),
        (number(1234567.0), "1,234,567"),
        (score(92.456, "%"), "92.46 %"),
        (score(-0.4, "%", signed=True), "−0.40 points"),
        (score(-0.001, "%", signed=True), "0.00 points"),
        (score(-1.23456, ""), "−1.2346"),
        (column("size_bytes", [2048.0, None, 1024.0]), ("Weight size KiB", ["2.000", "–", "1.000"])),
    ],
    ids=lambda value: str(value),
)
def test_numbers_read_well(got: object, wanted: object) -> None:
    assert got == wanted


def test_ties_are_two_standard_errors_of_the_difference() -> None:
    assert is_tie(1.0, (0.3, 0.4))
    assert not is_tie(1.01, (0.3, 0.4))
    assert is_tie(0.0, (None, None))
    assert not is_tie(0.1, (None, None))


def test_a_torn_last_line_is_tolerated_and_a_torn_middle_is_not(run_dir: Path, tmp_path: Path) -> None:
    for file in run_dir.glob("*.*"):
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    journal = tmp_path / "trials.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines, lines[-1][:40]]))
    assert len(load_run(tmp_path).trials) == len(lines) - 1
    journal.write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]))
    with pytest.raises(ValueError, match=r"trials\.jsonl: line 2 is no trial"):
        load_run(tmp_path)


def test_fake_run_is_deterministic(run_dir: Path, tmp_path: Path) -> None:
    again = write_fake_run(tmp_path, trials=12, failed_trials=2)
    assert json.loads((again / "result.json").read_text()) == json.loads((run_dir / "result.json").read_text())
