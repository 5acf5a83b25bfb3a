"""AdaRound and GPTQ against brute force, plain loops and what the papers say."""

import itertools

import pytest
import torch
from torch import nn

from haq import Experiment, InputError
from haq.commands.export import export_policy
from haq.edges.documents import write_json
from haq.export import load_quantized
from haq.quant import QuantizedModel
from haq.quant.settings import QuantizationConfig
from haq.repair import RepairedWeights, repair
from haq.repair.grid import Grid, LayerData, outputs
from haq.values.formats import Precision
from haq.values.policy import Policy

W3A8 = Precision.parse("w3a8")


def wrapped(module, shape, *, samples=96, scheme="symmetric", seed=0, iterations=600, correlated=True):
    torch.manual_seed(seed)
    data = torch.randn(samples, *shape)
    if correlated:
        data = data + 10 * data.flatten(1).mean(1).reshape(-1, *[1] * len(shape))
    # Scales of the largest weight: the default already balances the errors of a row.
    settings = QuantizationConfig(
        weight_scheme=scheme, repair_iterations=iterations, weight_calibration="minmax", activation_calibration="minmax"
    )
    return QuantizedModel(nn.Sequential(module).eval(), quantization=settings, calibration=[(data, None)])


def error(model, weight, precision=W3A8):
    """Mean squared error of the first layer's outputs with `weight`, over the calibration data."""
    data = LayerData.of(model, "0", precision)
    module, bias = model.layers["0"], model.float_bias("0")
    with torch.no_grad():
        wanted = outputs(module, model.float_weight("0"), bias, torch.cat(data.inputs))
        found = outputs(module, weight, bias, torch.cat(data.quantized))
    return float((found - wanted).square().mean())


def repaired(model, method, precision=W3A8, store=None):
    model.apply(Policy({"0": precision}))
    nearest = model.quantized_weight("0", precision.weight)
    repair(model, [method], store or RepairedWeights(None, {}))
    return nearest, model.repaired.get("0")


LAYERS = [
    (lambda: nn.Linear(12, 6), (12,)),
    (lambda: nn.Linear(12, 6, bias=False), (5, 12)),
    (lambda: nn.Conv2d(3, 8, 3, padding=1, stride=2), (3, 9, 9)),
    (lambda: nn.Conv2d(8, 8, 3, groups=8, padding="same", dilation=2), (8, 9, 9)),
    (lambda: nn.Conv2d(4, 6, 2, groups=2, padding_mode="reflect", padding=1), (4, 7, 7)),
    (lambda: nn.Conv1d(3, 5, 3, padding=1), (3, 11)),
]


@pytest.mark.parametrize("method", ["gptq", "adaround"])
@pytest.mark.parametrize("layer", LAYERS, ids=[str(number) for number in range(len(LAYERS))])
def test_the_output_is_nearer_to_float_than_with_nearest_rounding(layer, method):
    torch.manual_seed(3)
    model = wrapped(layer[0](), layer[1])
    nearest, weight = repaired(model, method)
    assert error(model, weight) < error(model, nearest)
    grid = Grid.of(model, "0", W3A8.weight)
    assert torch.allclose(grid.nearest(weight), weight, atol=1e-6)  # on the grid


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
def test_adaround_moves_a_weight_to_one_of_its_two_neighbours(scheme):
    torch.manual_seed(4)
    model = wrapped(nn.Linear(12, 6), (12,), scheme=scheme)
    _, weight = repaired(model, "adaround")
    grid = Grid.of(model, "0", W3A8.weight)
    steps = ((weight - model.float_weight("0")) / grid.scale).abs()
    inside = (model.float_weight("0") / grid.scale + grid.zero).round().clamp(grid.low + 1, grid.high - 1)
    free = (model.float_weight("0") / grid.scale + grid.zero - inside).abs() <= 1
    assert float(steps[free].max()) <= 1 + 1e-4


def test_adaround_is_among_the_best_of_all_roundings():
    ranks = []
    for seed in range(5):
        torch.manual_seed(seed)
        model = wrapped(nn.Linear(8, 1, bias=False), (8,), iterations=800, seed=seed)
        _, weight = repaired(model, "adaround")
        grid = Grid.of(model, "0", W3A8.weight)
        floor = (model.float_weight("0") / grid.scale).floor() + grid.zero
        every = (grid.at(floor + torch.tensor(up).reshape(1, 8)) for up in itertools.product((0.0, 1.0), repeat=8))
        ranks.append(sum(error(model, candidate) < error(model, weight) - 1e-9 for candidate in every))
    assert sorted(ranks)[2] <= 25  # of 256: the relaxation need not find the very best


def test_gptq_is_the_plain_loop_of_optimal_brain_surgeon():
    """One column after the other; the rest takes up its error through the inverse of what is left of the curvature."""
    torch.manual_seed(2)
    model = wrapped(nn.Linear(10, 4, bias=False), (10,), seed=2)
    _, found = repaired(model, "gptq")
    grid = Grid.of(model, "0", W3A8.weight)
    x = torch.cat(LayerData.of(model, "0", W3A8).quantized).double()
    curvature = x.T @ x
    curvature = curvature + 0.01 * curvature.diagonal().mean() * torch.eye(10, dtype=torch.double)
    weight, left = model.float_weight("0").double().clone(), curvature.clone()
    columns = list(range(10))
    for column in (x.T @ x).diagonal().argsort(descending=True).tolist():
        place = columns.index(column)
        inverse = torch.linalg.inv(left)
        rounded = Grid(grid.scale[:, column].double(), grid.zero[:, column].double(), grid.low, grid.high).nearest(
            weight[:, column]
        )
        miss = (weight[:, column] - rounded) / inverse[place, place]
        for other, index in enumerate(columns):
            weight[:, index] -= miss * inverse[place, other]
        weight[:, column] = rounded
        keep = [n for n in range(len(columns)) if n != place]
        left, columns = left[keep][:, keep], [columns[n] for n in keep]
    assert torch.allclose(found.double(), weight, atol=1e-5)


def test_gptq_of_independent_inputs_is_nearest_rounding():
    model = wrapped(nn.Linear(6, 4, bias=False), (6,), samples=64, correlated=False)
    data = torch.linalg.qr(torch.randn(64, 6)).Q * 5
    model = QuantizedModel(nn.Sequential(model.layers["0"]), calibration=[(data, None)])
    nearest, weight = repaired(model, "gptq", Precision.parse("w3afp32"))
    assert torch.allclose(weight, nearest, atol=1e-6)


def test_formats_without_a_grid_and_the_next_policy_keep_their_weights():
    model = wrapped(nn.Linear(12, 6), (12,))
    for text in ("wternarya8", "wfp16a8"):
        precision = Precision.parse(text)
        model.apply(Policy({"0": precision}))
        before = model.module(torch.ones(1, 12))
        repair(model, ["gptq"], RepairedWeights(None, {}))
        assert torch.equal(model.module(torch.ones(1, 12)), before)
    repaired(model, "gptq")
    changed = model.module(torch.ones(1, 12))
    model.apply(Policy({"0": W3A8}))
    assert not torch.equal(model.module(torch.ones(1, 12)), changed)
    assert not model.repaired


def test_biases_are_corrected_for_the_rounded_weights():
    model = wrapped(nn.Conv2d(3, 8, 3), (3, 9, 9))
    model.apply(Policy({"0": W3A8}))
    repair(model, ["gptq", "bias_correction"], RepairedWeights(None, {}))
    data = model.calibration[0]
    found = model(data).mean((0, 2, 3))
    model.apply(None)
    assert torch.allclose(found, model(data).mean((0, 2, 3)), atol=1e-5)


def test_no_layer_is_rounded_twice_and_a_damaged_file_is_not_believed(tmp_path, monkeypatch):
    calls = []
    plain = LayerData.of.__func__
    monkeypatch.setattr(LayerData, "of", classmethod(lambda cls, *a: calls.append(a[1]) or plain(cls, *a)))
    model = wrapped(nn.Linear(12, 6), (12,))
    first = repaired(model, "gptq", store=RepairedWeights(tmp_path, {"model": 1}))[1]
    again = repaired(model, "gptq", store=RepairedWeights(tmp_path, {"model": 1}))[1]
    assert torch.equal(first, again)
    assert calls == ["0"]
    repaired(model, "gptq", store=RepairedWeights(tmp_path, {"model": 2}))
    repaired(model, "gptq", Precision.parse("w4a8"), store=RepairedWeights(tmp_path, {"model": 1}))
    assert calls == ["0"] * 3
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-3] + b"abc")
    assert torch.equal(repaired(model, "gptq", store=RepairedWeights(tmp_path, {"model": 1}))[1], first)
    assert calls == ["0"] * 4


QUICKSTART = "experiments/quickstart.toml"


def test_rungs_repair_and_export_what_they_scored(tmp_path):
    options = ["evaluator.kind='gptq'", "evaluator.samples=200", "quantization.repairs=['bias_correction']"]
    experiment = Experiment.load(QUICKSTART, overrides=options)
    policy = Policy.uniform(experiment.network.layer_names, Precision.parse("w2a8"))
    measured = experiment.evaluator("search")(policy)
    assert measured.fidelity == "gptq"
    assert measured.details["gptq_seconds"] > 0
    assert measured.details["bias_correction_seconds"] > 0
    plain = Experiment.load(QUICKSTART, overrides=options[1:2]).evaluator("search")(policy)
    assert measured.score > plain.score + 3
    write_json(tmp_path / "policy.json", {"policy": policy.to_doc()})
    document = export_policy(experiment, tmp_path / "policy.json", tmp_path / "F", format="torch", check=True)
    assert document["check"]["passed"]
    assert document["measurement"]["score"] == measured.score
    x = experiment.data.test.head(16).inputs
    with torch.no_grad():
        assert torch.equal(load_quantized(experiment.model, tmp_path / "F")(x), experiment.quantized(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["quantization.repairs=['adaround','gptq']"], "which both round the weights; take one"),
        (["quantization.repairs=['gptq','gptq']"], "names one twice"),
        (["quantization.repairs=['magic']"], "equalize.*adaround.*gptq"),
        (["quantization.repairs=['bias_correction']", "quantization.bias_correction=true"], "asked for twice"),
        (["quantization.repairs=['gptq']", "evaluator.kind='qat'"], "fine-tuning learns what gptq repairs"),
        (["quantization.repairs=['adaround']", "quantization.calibration_samples=8"], "adaround needs 32 samples"),
    ],
)
def test_what_cannot_be_repaired_is_one_line(options, message):
    with pytest.raises(InputError, match=message) as caught:  # noqa: PT012
        experiment = Experiment.load(QUICKSTART, overrides=options)
        experiment.check()
        measured = experiment.evaluator("search")(Policy.uniform(experiment.network.layer_names, W3A8))
        raise InputError(measured.error or "was measured")
    assert "\n" not in str(caught.value)
