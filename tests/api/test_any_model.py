"""Stock modules, from `haq.inspect` to files that run."""

import pytest
import torch
from torch import nn

import haq
from haq.export import export, load_quantized
from haq.quant import QuantizedModel
from haq.training import TrainableModel
from haq.values.formats import Precision
from haq.values.policy import Policy


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 1)
        self.head = nn.Linear(16, 3)

    def forward(self, ids):
        return self.head(self.encoder(self.table(ids)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, cls):
        super().__init__()
        self.rnn, self.head = cls(4, 8, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0].mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(torch.relu(self.inner(self.table(ids))).mean(1))


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(50, 16, mode="mean")
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(16, 3))

    def forward(self, ids):
        return self.head(self.bag(ids))


MODELS = {
    "encoder": Encoder,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "rnn": lambda: Recurrent(nn.RNN),
    "tied": Tied,
    "bag": Bags,
}


def made(kind):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    x = torch.randn(64, 6, 4) if kind in ("lstm", "gru", "rnn") else torch.randint(0, 50, (64, 6))
    return model, x


@pytest.mark.parametrize("kind", MODELS)
def test_files_compute_what_the_quantized_model_computes(kind, tmp_path):
    pytest.importorskip("onnxruntime")
    from haq.export.onnx.run import OnnxRunner

    model, x = made(kind)
    quantized = QuantizedModel(model, calibration=[(x, None)])
    quantized.apply(Policy.uniform(quantized.layers, Precision.parse("w4a8")))
    wanted = quantized(x).detach()
    assert not torch.allclose(wanted, model(x), rtol=1e-3)
    for name in ("onnx", "torch"):
        export(quantized, model, tmp_path / name, inputs=x, format=name)
    got = OnnxRunner((tmp_path / "onnx").read_bytes())(x)
    assert float((got - wanted).norm() / wanted.norm()) < 0.01
    assert torch.equal(load_quantized(model, tmp_path / "torch")(x), wanted)


@pytest.mark.parametrize("kind", ["encoder", "gru", "tied"])
def test_training_reaches_every_weight(kind):
    model, x = made(kind)
    quantized = QuantizedModel(model, calibration=[(x, None)])
    trained = TrainableModel(model, quantized)
    trained.apply(Policy.uniform(quantized.layers, Precision.parse("w4a8")))
    trained(x).square().mean().backward()
    weights = [
        layer.parametrizations.weight.original
        for layer in trained.module.modules()
        if hasattr(layer, "parametrizations")
    ]
    assert len(weights) == len(quantized.layers)
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in weights)


def test_a_tied_table_is_one_decision_and_priced_once():
    model, x = made("tied")
    found = haq.inspect(model, x[:2], device="bitfusion")
    assert found.network.params == 50 * 16 + 16 * 16
    report = haq.cost(model, x[:2], "w4a8", device="bitfusion")
    rows = {row.layer.name: row for row in report.layers}
    assert rows["table"].cost.size_bytes == 0
    assert rows["head"].cost.size_bytes == 50 * 16 / 2 + 50 * 4
    answer = haq.search(model, train=(x, torch.randint(0, 50, (64,))), device="bitfusion", size="75%", max_trials=1)
    assert answer.policy["table"] == answer.policy["head"]


def test_a_search_over_a_stock_encoder(tmp_path):
    model, x = made("encoder")
    answer = haq.search(
        model, train=(x, torch.randint(0, 3, (64,))), device="bitfusion", size="70%", max_trials=1, out=tmp_path / "run"
    )
    names = set(answer.policy)
    assert {"table", "encoder.layers.0.self_attn.q_proj", "encoder.layers.0.linear1", "head"} <= names
    assert "encoder.layers.0.self_attn.out_proj" in names
    assert isinstance(model.encoder.layers[0].self_attn, nn.MultiheadAttention)
