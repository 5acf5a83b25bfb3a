"""Tables: what they promise whatever the metric, and when a saved one is refused."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from small_models import Conv, formats_of, quantize, seeded, two_head_loss
from torch import nn

from haq.quant import correct_bias, reestimate_batch_norm
from haq.sensitivity import METRICS, SensitivityTable, sensitivity_table
from haq.sensitivity.base import monotone, table_signature
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.policy import Policy
from haq.zoo import Split

METRIC = pytest.mark.parametrize("metric", sorted(METRICS))
NAMES = ("int2", "int3", "int8", "fp16", "fp32")


def table(model, split, metric="sqnr", *, names=("int2", "int8"), loss=F.cross_entropy, **options):
    return sensitivity_table(model, formats_of(model, *names), split, metric=metric, loss=loss, **options)


@METRIC
def test_scores_fall_with_bits_and_fp32_is_free(conv_model, images, metric):
    scores = table(conv_model, images, metric, names=NAMES)
    for rows in (scores.weights, scores.activations):
        assert list(rows) == ["conv", "fc"]
        for row in rows.values():
            values = [row[name] for name in NAMES]
            assert values == sorted(values, reverse=True)
            assert all(math.isfinite(value) and value >= 0 for value in values)
            assert values[-1] == 0.0
        assert max(max(row.values()) for row in rows.values()) > 0


@METRIC
def test_regression_with_several_outputs(two_heads, vectors, metric):
    scores = table(two_heads, vectors, metric, loss=two_head_loss)
    assert min(scores.weights[layer]["int2"] for layer in ("body", "place", "size")) > 0


@METRIC
def test_the_model_is_left_as_found(images, metric):
    net = seeded(Conv)
    model = quantize(net, images)
    policy = Policy({"conv": Precision.parse("w3a4"), "fc": Precision.parse("w4a8")})
    model.apply(policy)
    correct_bias(model)
    reestimate_batch_norm(model)
    before, weights = model(images.inputs), {name: value.clone() for name, value in net.state_dict().items()}
    flags = [parameter.requires_grad for parameter in net.parameters()]
    table(model, images, metric)
    assert model.policy == policy
    assert torch.equal(model(images.inputs), before)
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_model_is_left_as_found_when_the_loss_fails(conv_model, images):
    before = conv_model(images.inputs)
    with pytest.raises(ZeroDivisionError):
        table(conv_model, images, "hessian", loss=lambda outputs, targets: 1 / 0)
    assert torch.equal(conv_model(images.inputs), before)
    assert conv_model.policy is None


class InPlace(nn.Module):
    """In-place activations and an in-place add, frozen parameters, integer input."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.requires_grad_(False)

    def forward(self, tokens):
        x = F.relu(self.first(self.embed(tokens)), inplace=True)
        y = self.second(x)
        y += x
        return self.last(F.relu_(y)).mean(1)


@METRIC
def test_in_place_operations_frozen_parameters_and_integer_inputs(metric):
    tokens = torch.arange(160).reshape(40, 4) % 9
    split = Split(tokens, torch.arange(40) % 3)
    scores = table(quantize(seeded(InPlace), split), split, metric)
    assert max(row["int2"] for row in scores.weights.values()) > max(row["int8"] for row in scores.weights.values())


def test_noise_is_put_right():
    rows = {
        "a": {"int8": 0.02, "int4": 0.01, "int2": -0.3, "fp32": 0.0},
        "b": {"int4": 0.5, "ternary": 2.0, "int2": 1.0},
    }
    assert monotone(rows) == {
        "a": {"int2": 0.0, "int4": 0.0, "int8": 0.0, "fp32": 0.0},
        "b": {"int2": 1.0, "ternary": 2.0, "int4": 0.5},
    }


def test_one_list_of_formats_serves_weights_and_activations(conv_model, images):
    formats = [Format.integer(2), Format.integer(8)]
    flat = sensitivity_table(
        conv_model, dict.fromkeys(conv_model.layers, formats), images, metric="sqnr", loss=F.cross_entropy
    )
    assert flat == SensitivityTable(**{**table(conv_model, images).__dict__, "details": flat.details})


def test_weight_and_activation_formats_may_differ(conv_model, images):
    formats = {"fc": ([Format.integer(2)], [Format.integer(8)])}
    scores = sensitivity_table(conv_model, formats, images, metric="fisher", loss=F.cross_entropy)
    assert scores.weights.keys() == {"fc"}
    assert list(scores.weights["fc"]) == ["int2"]
    assert list(scores.activations["fc"]) == ["int8"]


def test_batch_size_does_not_change_what_is_measured(conv_model, images):
    for metric in ("loss", "kl", "sqnr", "gradient"):
        whole, parts = (table(conv_model, images, metric, batch_size=size) for size in (96, 36))
        assert parts.weights["conv"]["int2"] == pytest.approx(whole.weights["conv"]["int2"], rel=1e-3)
        assert parts.activations["fc"]["int2"] == pytest.approx(whole.activations["fc"]["int2"], rel=1e-3)


def test_progress_counts_to_the_end(conv_model, images):
    seen = []
    table(conv_model, images, "fisher", batch_size=40, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.fixture
def changes(images):
    """What makes a table another one: name -> a call that makes it."""
    other = seeded(Conv)
    with torch.no_grad():
        other.fc.weight[0, 0] += 1e-3
    statistics = seeded(Conv)
    statistics.norm.running_mean += 0.1
    model = quantize(seeded(Conv), images)
    return {
        "weights": lambda: table(quantize(other, images), images),
        "batch norm statistics": lambda: table(quantize(statistics, images), images),
        "data": lambda: table(model, images.head(95)),
        "targets": lambda: table(model, Split(images.inputs, images.targets.flip(0))),
        "calibration data": lambda: table(quantize(seeded(Conv), images.head(64)), images),
        "formats": lambda: table(model, images, names=("int2", "int4")),
        "quantization": lambda: table(quantize(seeded(Conv), images, weight_calibration="minmax"), images),
        "metric": lambda: table(model, images, "gradient"),
        "seed": lambda: table(model, images, seed=1),
        "batch size": lambda: table(model, images, batch_size=32),
        "loss": lambda: table(model, images, loss=F.multi_margin_loss),
    }


def test_the_signature_tells_every_change(changes, conv_model, images):
    signatures = {name: make().signature for name, make in changes.items()} | {
        "none": table(conv_model, images).signature
    }
    assert len(set(signatures.values())) == len(signatures), signatures


def test_options_of_the_metric_are_in_the_signature(conv_model, images):
    few, more = (table(conv_model, images, "hessian", options={"probes": count}) for count in (1, 2))
    assert few.signature != more.signature
    assert few.details["options"] == {"probes": 1}


def test_the_policy_in_use_is_not_in_the_signature(conv_model, images):
    before = table(conv_model, images)
    conv_model.apply(Policy.uniform(conv_model.layers, Precision.parse("w2a2")))
    correct_bias(conv_model)
    after = table(conv_model, images)
    assert after.signature == before.signature
    assert after.weights == before.weights


def test_a_saved_table_is_reused(conv_model, images, tmp_path):
    file = tmp_path / "sensitivity.json"
    made = table(conv_model, images, file=file)
    other = {**made.weights, "fc": {**made.weights["fc"], "int2": 12.5}}
    SensitivityTable(made.metric, made.signature, other, made.activations, made.details).save(file)
    assert table(conv_model, images, file=file).weights["fc"]["int2"] == 12.5
    assert made.weights["fc"]["int2"] != 12.5


@pytest.mark.parametrize("value", [12.5, 10**30, "fast", None])
def test_a_table_that_was_edited_is_not_believed(conv_model, images, tmp_path, value):
    file = tmp_path / "sensitivity.json"
    table(conv_model, images, file=file)
    document = json.loads(file.read_text())
    document["weights"]["fc"]["int2"] = value
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"sensitivity\.json: its content is not what was written .*; delete it"):
        table(conv_model, images, file=file)


def test_a_table_of_another_setup_is_refused(changes, conv_model, images, tmp_path):
    file = tmp_path / "sensitivity.json"
    changes["weights"]().save(file)
    with pytest.raises(InputError, match=r"sensitivity\.json: made for another model, data, formats"):
        table(conv_model, images, file=file)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"metric": "hawq"}, "unknown sensitivity metric 'hawq'; known: fisher, gradient, hessian, kl, loss, sqnr"),
        ({"options": {"probs": 3}}, "'sqnr' has no option probs; it has none"),
        ({"metric": "hessian", "options": {"probs": 3}}, "'hessian' has no option probs; it has probes"),
    ],
    ids=["metric", "option", "misspelt option"],
)
def test_unknown_names_are_answered_with_the_known(conv_model, images, bad, message):
    with pytest.raises(InputError, match=message):
        table(conv_model, images, **bad)


def test_unknown_layers_are_named(conv_model, images):
    formats = {"head": ([Format.integer(2)], [Format.integer(2)])}
    with pytest.raises(InputError, match="no quantized layer head; the model has conv, fc"):
        sensitivity_table(conv_model, formats, images, metric="sqnr", loss=F.cross_entropy)


def test_a_loss_that_is_not_finite_is_named(conv_model, images):
    with pytest.raises(InputError, match="'loss' is nan for layer 'conv' in int2; check that the loss"):
        table(conv_model, images, "loss", loss=lambda outputs, targets: outputs.sum() * math.nan)


def test_seed_options_and_batch_size_reach_the_metric(conv_model, images, monkeypatch):
    asked = {}

    def score(model, formats, batches, *, loss, seed=0, progress=None, probes=8):
        asked.update(sizes=[len(inputs) for inputs, _ in batches], seed=seed, probes=probes, loss=loss)
        rows = {name: {fmt.name: 1.0 for fmt in pair[0]} for name, pair in formats.items()}
        return rows, rows

    monkeypatch.setitem(METRICS, "recording", score)
    table(conv_model, images, "recording", seed=7, options={"probes": 3}, batch_size=5, loss=F.mse_loss)
    count = len(images.inputs)
    assert asked["sizes"] == [5] * (count // 5) + [count % 5] * bool(count % 5)
    assert (asked["seed"], asked["probes"], asked["loss"]) == (7, 3, F.mse_loss)


def test_a_layer_loses_by_its_weights_and_by_its_input():
    made = SensitivityTable("sqnr", "s", {"fc": {"int4": 0.5, "int8": 0.25}}, {"fc": {"int4": 4.0, "int8": 2.0}}, {})
    assert made.of("fc", Precision.parse("w4a8")) == 2.5
    assert made.of("fc", Precision.parse("w8a4")) == 4.25


def test_the_shape_of_the_data_is_in_the_signature():
    net = torch.nn.Sequential(nn.Conv1d(2, 3, 1))
    signatures = []
    for shape in ((8, 2, 6), (4, 2, 12)):
        split = Split(torch.arange(96.0).reshape(shape), torch.zeros(shape[0], 3, shape[2]))
        model = quantize(net, Split(torch.ones(4, 2, 3), torch.zeros(4)))
        signatures.append(table_signature(model, {}, split, {}))
    assert signatures[0] != signatures[1]
