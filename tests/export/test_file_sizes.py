"""A file's weights take what `size_bytes` predicts, whatever is quantized and whatever stays in float."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from haq.export import export
from haq.hardware import build_cost_model, load_profile
from haq.hardware.costs import cost_report
from haq.quant import QuantizedModel
from haq.quant.settings import QuantizationConfig
from haq.trace import trace
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import load_model

RANGES = (".input_scale", ".input_zero_point", ".bias_scale", ".reciprocal", ".one")
"""Of activations, five bytes for each, and for biases the product of an input's and a weight's scale: no weights."""
CHOICES = [Precision.parse(text) for text in ("w2a8", "w3a8", "w4a4", "w5a8", "w6a6", "w8a8")]


def block(inputs: int, outputs: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v))


class Tokens(nn.Module):
    """Tables of tokens and positions, attention, a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(50, 32), nn.Embedding(16, 32)
        self.first, self.second, self.head = Attention(32), Attention(32), nn.Linear(32, 50)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.second(self.first(x)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.inner, self.head = nn.Embedding(60, 64), nn.Linear(64, 64), nn.Linear(64, 60, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        return self.head(torch.relu(self.inner(self.tokens(ids))))


class Patches(nn.Module):
    """A small vision transformer with a learned position and a scale per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.attention, self.head = nn.Conv2d(3, 32, 4, 4), Attention(32), nn.Linear(32, 10)
        self.position, self.gain = nn.Parameter(torch.randn(1, 16, 32)), nn.Parameter(torch.ones(32))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head((self.attention(x) * self.gain).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(12, 32, batch_first=True), nn.Linear(32, 64)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Dense(nn.Module):
    """Batch norms before the convolutions, as DenseNet has them: they stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1, self.conv1 = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3, padding=1)
        self.norm2, self.head = nn.BatchNorm2d(64), nn.Conv2d(64, 10, 1)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.conv1(torch.relu(self.norm1(x)))], 1)
        return self.head(torch.relu(self.norm2(x))).mean((2, 3))


class Sound(nn.Sequential):
    def __init__(self) -> None:
        first, second = nn.Conv1d(1, 32, 9, 4), nn.Conv1d(32, 64, 5, 2)
        super().__init__(first, nn.ReLU(), second, nn.ReLU(), nn.Conv1d(64, 32, 3))


class Segmenting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.pool, self.deep = block(3, 32), nn.MaxPool2d(2), block(32, 64)
        self.up, self.out = nn.ConvTranspose2d(64, 32, 2, 2), nn.Conv2d(64, 4, 1)

    def forward(self, x):
        skip = self.down(x)
        return self.out(torch.cat([skip, self.up(self.deep(self.pool(skip)))], 1))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor], tuple[str, ...]]] = {
    "digits_cnn": (lambda: load_model("digits_cnn"), lambda: torch.randn(4, 1, 8, 8), ()),
    "resnet20": (lambda: load_model("resnet20"), lambda: torch.randn(2, 1, 28, 28), ()),
    "depthwise": (
        lambda: nn.Sequential(block(3, 64), block(64, 64, 64), nn.Conv2d(64, 256, 1), nn.AdaptiveAvgPool2d(1)),
        lambda: torch.randn(4, 3, 8, 8),
        (),
    ),
    "sound": (Sound, lambda: torch.randn(4, 1, 256), ()),
    "autoencoder": (
        lambda: nn.Sequential(nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 32), nn.Linear(32, 256)),
        lambda: torch.randn(4, 256),
        (),
    ),
    "segmentation": (Segmenting, lambda: torch.randn(2, 3, 16, 16), ()),
    "dense": (Dense, lambda: torch.randn(4, 3, 12, 12), ()),
    "tokens": (Tokens, lambda: torch.randint(50, (2, 16)), ()),
    "tied": (Tied, lambda: torch.randint(60, (2, 9)), ()),
    "patches": (Patches, lambda: torch.randn(2, 3, 16, 16), ()),
    "recurrent": (Recurrent, lambda: torch.randn(2, 7, 12), ("rnn",)),
}


def quantized(name: str, policy: Callable[[tuple[str, ...]], Policy]):
    """The model, quantized with batch norm folded, an input, and the bytes that are predicted."""
    make, inputs, kept = MODELS[name]
    torch.manual_seed(0)
    model, x = make().eval(), inputs()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data.uniform_(0.5, 1.5)  # equal tensors are stored once
    network = trace(model, x, float_modules=kept)
    settings = QuantizationConfig(batch_norm="fold", calibration_samples=4)
    found = QuantizedModel(model, quantization=settings, calibration=[(x, None)], layers=network.layer_names)
    chosen = policy(network.layer_names)
    for group in network.shared_weights:
        chosen = Policy({**chosen, **dict.fromkeys(group, chosen[group[0]])})
    found.apply(chosen)
    report = cost_report(network, build_cost_model(load_profile("bitfusion")), chosen)
    return model, found, x, report.totals["size_bytes"]


def mixed(layers: tuple[str, ...]) -> Policy:
    rng = random.Random(len(layers))
    return Policy({layer: rng.choice(CHOICES) for layer in layers})


def uniform(layers: tuple[str, ...]) -> Policy:
    return Policy.uniform(layers, Precision.parse("w8a8"))


@pytest.mark.parametrize("name", MODELS)
def test_the_torch_file_takes_what_was_predicted(name: str, tmp_path: Path) -> None:
    model, found, _, predicted = quantized(name, mixed)
    export(found, model, tmp_path / "m.safetensors", inputs=None, format="torch")
    with safe_open(str(tmp_path / "m.safetensors"), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) == pytest.approx(
        predicted, rel=0.02
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_onnx_file_of_8_bit_weights_takes_what_was_predicted(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, found, x, predicted = quantized(name, uniform)
    export(found, model, tmp_path / "m.onnx", inputs=x, format="onnx")
    taken = 0
    for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer:
        if not any(name in tensor.name for name in RANGES):
            taken += onnx.numpy_helper.to_array(tensor).nbytes
    assert taken == pytest.approx(predicted, rel=0.02)


def _table() -> None:
    """`python tests/export/test_file_sizes.py`: what each file takes beside what was predicted, as Markdown."""
    import tempfile

    import onnx

    print("| Model | w8a8 predicted | onnx file | mixed predicted | torch file |\n|---|---|---|---|---|")
    for name in MODELS:
        folder = Path(tempfile.mkdtemp())
        model, found, x, eight = quantized(name, uniform)
        export(found, model, folder / "m.onnx", inputs=x, format="onnx")
        tensors = onnx.load(folder / "m.onnx").graph.initializer
        own = (t for t in tensors if not any(part in t.name for part in RANGES))
        first = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in own)
        model, found, _, several = quantized(name, mixed)
        export(found, model, folder / "m.safetensors", inputs=None, format="torch")
        with safe_open(str(folder / "m.safetensors"), framework="pt") as file:
            second = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
        errors = (f"{100 * (taken / predicted - 1):+.1f} %" for taken, predicted in ((first, eight), (second, several)))
        left, right = errors
        print(f"| {name} | {eight:,.0f} | {first:,} ({left}) | {several:,.0f} | {second:,} ({right}) |")


if __name__ == "__main__":
    _table()
