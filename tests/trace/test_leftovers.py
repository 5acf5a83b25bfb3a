"""What stays in float is counted, module by module, and what a policy leaves in float is in every total."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from haq.hardware import build_cost_model, load_profile
from haq.hardware.costs import cost_report
from haq.hardware.float_work import coverage_lines
from haq.problem.budgets import nearest_to_8_bit, resolved_bound
from haq.problem.from_network import problem_document
from haq.problem.problem import Problem
from haq.problem.settings import SpaceConfig
from haq.problem.space import build_space
from haq.trace import trace
from haq.values.formats import Precision
from haq.values.network import FLOAT_WRITER, Network
from haq.values.policy import Policy


class Block(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class Language(nn.Module):
    """A token table tied to the head, a table of positions, attention, norms."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(40, 16), nn.Embedding(24, 16)
        self.block, self.norm, self.head = Block(), nn.LayerNorm(16), nn.Linear(16, 40, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.block(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(12, 32, batch_first=True), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Normed(nn.Module):
    """Batch norm right behind a convolution (merged), and before one (computed)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.merged = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.before, self.second = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.second(self.before(torch.relu(self.merged(self.first(x)))))


def parts(network: Network) -> dict[str, tuple[int, int, int]]:
    return {part.name: (part.params, part.bytes, part.macs) for part in network.float_parts}


@pytest.fixture(scope="module")
def language() -> Network:
    return trace(Language().eval(), torch.zeros(2, 24, dtype=torch.long))


def test_norms_attention_and_biases_are_left(language):
    assert parts(language) == {
        "block.norm": (32, 128, 0),
        "block": (0, 0, 2 * 24 * 24 * 16),
        "block.qkv": (48, 192, 0),
        "block.out": (16, 64, 0),
        "norm": (32, 128, 0),
    }


def test_float_modules_are_left_with_their_products():
    network = trace(Recurrent().eval(), torch.randn(2, 7, 12), float_modules=["rnn"])
    steps = 7 * (12 * 4 * 32 + 32 * 4 * 32)
    assert parts(network) == {"rnn": (5888, 4 * 5888, steps), "head": (5, 20, 0)}


def test_attention_of_torch_s_own_module_is_counted():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 5)

        def forward(self, x):
            return self.head(self.attention(x, x, x, need_weights=False)[0])

    network = trace(Attending().eval(), torch.randn(3, 7, 16), float_modules=["attention"])
    macs = 7 * 16 * 48 + 2 * 4 * 7 * 7 * 4 + 7 * 16 * 16
    assert sum(part.macs for part in network.float_parts) == macs
    assert sum(part.params for part in network.float_parts) == 3 * 256 + 48 + 256 + 16 + 5


def test_a_batch_norm_behind_a_layer_is_its_bias_and_any_other_is_work():
    network = trace(Normed().eval(), torch.randn(2, 3, 6, 6))
    assert parts(network) == {"first": (8, 32, 0), "before": (32, 128, 0), "second": (4, 16, 0)}
    assert {part.name for part in network.float_parts if part.works} == {"before"}


def test_what_is_computed_in_float_lies_in_memory_as_float(language):
    live = {step.name: step.live for step in language.steps}
    assert live["block.qkv"] == (("positions", 384), (FLOAT_WRITER, 384), ("block.qkv", 1152))
    model = build_cost_model(load_profile("riscv_xpulpnn"))
    policy = Policy.uniform(language.layer_names, Precision.parse("w4a4"))
    peak = max(
        sum(4 * n if writer == FLOAT_WRITER else n / 2 for writer, n in step.live if writer) for step in language.steps
    )
    assert cost_report(language, model, policy).totals["peak_activation_bytes"] == pytest.approx(peak, abs=100)


def test_every_total_has_them_and_the_problem_says_the_same(language):
    model = build_cost_model(load_profile("riscv_xpulpnn"))
    policy = Policy.uniform(language.layer_names, Precision.parse("w4a8"))
    report = cost_report(language, model, policy)
    left = 128 + 192 + 64 + 128
    assert report.totals["size_bytes"] == sum(row.cost.size_bytes for row in report.layers) + left
    macs = 2 * 24 * 24 * 16
    assert report.totals["bops"] == 32 * sum(layer.macs for layer in language.layers) + 1024 * macs
    space = build_space(language, SpaceConfig(weights=("int4",), activations=("int8",)), model)
    document = problem_document(language, model, space, budgets={"size_bytes": 1e9}, objective="bops")
    costs = Problem.from_doc(document).costs(policy)
    assert {metric: costs[metric] for metric in report.totals} == pytest.approx(report.totals)


def test_percentages_are_of_the_whole_model(language):
    model = build_cost_model(load_profile("riscv_xpulpnn"))
    reference = nearest_to_8_bit(language, model)
    bound = resolved_bound("size_bytes", "50%", language, model, reference)
    assert bound == cost_report(language, model, reference).totals["size_bytes"] / 2
    quantized = sum(row.cost.size_bytes for row in cost_report(language, model, reference).layers)
    assert bound == (quantized + 128 + 192 + 64 + 128) / 2


def test_coverage_says_what_share_is_quantized_and_what_is_left(language):
    model = build_cost_model(load_profile("riscv_xpulpnn"))
    report = cost_report(language, model, Policy.uniform(language.layer_names, Precision.parse("w8a8")))
    coverage = report.coverage
    assert (coverage.quantized_params, coverage.params) == (1664 + 384, 1664 + 384 + 128)
    assert coverage.quantized_macs == language.macs
    assert coverage.macs == language.macs + 2 * 24 * 24 * 16
    first, left, *bounds = coverage_lines(report.to_doc())
    assert first.startswith("quantized: 94.1 % of parameters, ")
    assert left.startswith("left in float: 512 bytes, block.qkv (bias) 192, block.norm (LayerNorm) 128, ")
    assert any(line.startswith("latency_ms is a lower bound") and "block (Block)" in line for line in bounds)


def test_layers_in_float_formats_are_not_quantized():
    network = trace(Normed().eval(), torch.randn(2, 3, 6, 6))
    model = build_cost_model(load_profile("nvidia_a100"))
    policy = Policy({"first": Precision.parse("wfp16afp16"), "second": Precision.parse("w8a8")})
    assert cost_report(network, model, policy).coverage.quantized_params == 32


def test_a_device_that_runs_float_prices_the_work_and_nothing_is_missing(language):
    model = build_cost_model(load_profile("nvidia_a100"))
    policy = Policy.uniform(language.layer_names, Precision.parse("w8a8"))
    report = cost_report(language, model, policy)
    assert not report.lower_bounds
    attention = next(row for row in report.floats if row.part.name == "block")
    assert attention.cost.latency_ms > 0
    total = sum(row.cost.latency_ms for row in (*report.layers, *report.switches, *report.joins, *report.floats))
    assert report.totals["latency_ms"] == pytest.approx(total)


def test_one_that_does_not_says_lower_bound(language):
    report = cost_report(
        language,
        build_cost_model(load_profile("riscv_xpulpnn")),
        Policy.uniform(language.layer_names, Precision.parse("w8a8")),
    )
    assert set(report.lower_bounds) >= {"latency_ms"}
    assert "block (Block)" in report.lower_bounds["latency_ms"]
    assert not any("qkv" in name for name in report.lower_bounds["latency_ms"])


def test_an_ordinary_network_has_no_lower_bound():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

    network = trace(Plain().eval(), torch.randn(2, 1, 8, 8))
    model = build_cost_model(load_profile("riscv_xpulpnn"))
    report = cost_report(network, model, Policy.uniform(network.layer_names, Precision.parse("w8a8")))
    assert report.lower_bounds == {}
    assert report.coverage.line.endswith("100 % of multiply-accumulates")


def test_the_network_survives_json(language):
    assert Network.from_doc(language.to_doc()) == language
