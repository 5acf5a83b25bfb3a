"""`haq.search` and its neighbours on a model that this file defines."""

from __future__ import annotations

import doctest
import json

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import haq
from haq import InfeasibleError, InputError, Policy, SearchStrategy

FAST = {"sensitivity": {"samples": 32, "metric": "sqnr"}, "cache": {"enabled": False}}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(120, 1, 6, 6, generator=generator)
    return x, torch.randint(3, (120,), generator=generator)


def run(net, train, **options):
    given = {"device": "cortex_m7", "size": "70%", "max_trials": 1, "settings": FAST} | options
    return haq.search(net, train=train, **given)


@pytest.fixture(scope="module")
def found(net, data):
    x, y = data
    loader = DataLoader(TensorDataset(x[:60], y[:60]), batch_size=16)
    return run(net, loader, search=(x[60:90], y[60:90]), test=TensorDataset(x[90:], y[90:]))


def test_the_answer_is_within_budget_and_complete(found, net, data):
    assert set(found.policy) == {"conv", "head"}
    eight = haq.cost(net, data[0][:1], "w8a8", device="cortex_m7").totals["size_bytes"]
    assert found.costs["size_bytes"] <= 0.7 * eight + 1e-6
    assert haq.cost(net, data[0][:1], found.policy, device="cortex_m7").totals["size_bytes"] == pytest.approx(
        found.costs["size_bytes"]
    )
    assert found.report().is_file()
    assert found.verdict.endswith(".")


def test_the_model_computes_what_the_file_computes(found, data, tmp_path):
    x = data[0][:7]
    path = found.export(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(haq.load_quantized(Net(), path)(x), found.model(x))
    with pytest.raises(InputError, match="does not say the format"):
        found.export(tmp_path / "net.bin")


def test_the_exported_file_runs(found, data, tmp_path):
    pytest.importorskip("onnxruntime")
    from haq.export.onnx.run import OnnxRunner

    got = OnnxRunner(found.export(tmp_path / "net.onnx").read_bytes())(data[0][:5])
    with torch.no_grad():
        assert torch.allclose(got, found.model(data[0][:5]), atol=1e-3)


def test_a_notebook_shows_scores_costs_and_bits(found):
    shown = found._repr_html_()
    assert all(text in shown for text in ("size_bytes", "test score", "conv", "report.html"))


def test_the_model_that_was_given_is_left_as_it_was(net, data):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    run(net, data)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_own_metric_loss_and_progress(net, data):
    told = []
    result = run(
        net,
        data,
        metric=lambda outputs, targets: -float((outputs.argmax(1) != targets).double().sum()),
        loss=lambda outputs, targets: torch.nn.functional.nll_loss(outputs.log_softmax(1), targets),
        progress=lambda stage, done, total: told.append(stage),
    )
    assert result.score <= 0
    assert "measuring policies" in told


class First(SearchStrategy):
    """Proposes the highest precision of each layer once."""

    def __init__(self, problem, *, seed=0):
        del seed
        self.problem, self.left = problem, 1

    def suggest(self, count):
        proposed = self.left and count
        self.left = 0
        return [self.problem.repair(Policy({n: max(self.problem.choices(n)) for n in self.problem.layers}))][:proposed]

    def update(self, trials):
        pass


def test_a_strategy_of_ones_own(net, data):
    result = run(net, data, strategy=First)
    sources = [
        line["source"] for line in map(json.loads, (result.folder / "trials.jsonl").read_text().splitlines()[1:])
    ]
    assert "First" in sources


def test_values_are_compared_as_values(data):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    result = run(model, (data[0], torch.randn(120, 2)))
    assert result.document["metric"] == "negative_mse"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": None}, "name at least one budget"),
        ({"device": "cortex_m77"}, "unknown hardware profile 'cortex_m77'; did you mean 'cortex_m7'"),
        ({"size": "lots"}, r"size_bytes = 'lots'"),
        ({"strategy": "annealing"}, "search.strategy = 'annealing': unknown"),
        ({"strategy": 3}, "strategy: 3 is no haq.SearchStrategy"),
        ({"train": 5}, "train: .*got int; give a DataLoader"),
        ({"train": (torch.zeros(2, 1, 6, 6), torch.zeros(3))}, "train: .*one count of samples"),
        ({"train": (torch.zeros(2, 1, 6, 6), torch.zeros(2))}, "train: 2 samples are too few"),
        ({"settings": {"serch": {}}}, "serch: unknown key"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_used_is_one_line(net, data, change, message):
    arguments = {"train": data} | change
    with pytest.raises(InputError, match=message) as error:
        run(net, **arguments)
    assert "\n" not in str(error.value)


def test_no_policy_within_budget_says_the_least(net, data):
    with pytest.raises(InfeasibleError, match="size_bytes"):
        run(net, data, size=3)


def test_inspection_counts_every_parameter(net, data):
    seen = haq.inspect(net, data[0][:2], device="cortex_m7")
    assert seen.parameters == 72 + 24 + 8 + 3  # weights and biases: batch norm is folded into these
    assert {layer.name for layer in seen.network.layers} == {"conv", "head"}
    assert "w8a8" in seen.formats["conv"]
    assert {part.label for part in seen.left} == {"conv (bias)", "head (bias)"}
    assert seen.coverage["parameters"] == pytest.approx(96 / 107)


def test_evaluate_sensitivity_and_lint(net, data):
    measured = haq.evaluate(net, "w8a8", train=data)
    assert measured.ok
    table = haq.sensitivity(net, train=data, device="cortex_m7", metric="sqnr", samples=32)
    assert set(table.weights) == {"conv", "head"}
    assert isinstance(haq.lint(net, data, device="cortex_m7", samples=16), list)
    with pytest.raises(InputError, match="policy = 'w8': "):
        haq.evaluate(net, "w8", train=data)


def test_rooms_are_functions_and_packages():
    assert haq.search.loop.run_search
    assert callable(haq.evaluate)
    assert {"search", "inspect", "cost", "evaluate", "lint", "profile", "sensitivity"} <= set(dir(haq))


def test_the_example_of_the_docstring_runs():
    from haq.api import search as function

    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    (example,) = [test for test in finder.find(function, "search") if test.examples]
    assert runner.run(example).failed == 0
