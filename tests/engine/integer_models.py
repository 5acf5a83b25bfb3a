"""Small models with every operator that has an integer form, and how they are lowered."""

from __future__ import annotations

from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haq.deployed.state import capture
from haq.engine import IntegerModel, LoweringOptions, lower
from haq.quant import QuantizedModel
from haq.quant.settings import QuantizationConfig
from haq.values.formats import Precision
from haq.values.policy import Policy


class Convolutions(nn.Module):
    """Grouped, depthwise, dilated, strided and transposed convolutions, batch norm before and behind, a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first_norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, (3, 2), padding="same", dilation=(2, 1), groups=6)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.down = nn.Conv2d(4, 5, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.grouped(self.first_norm(x))))
        y = F.relu6(self.depthwise(F.pad(y, (1, 0, 0, 1)))) + y[:, :, :1, :1]
        y = F.max_pool2d(F.relu(self.up(y)), 3, 2, 1)
        y = F.avg_pool2d(F.hardtanh(self.down(y)), 2, 1, 1, count_include_pad=False)
        return y.mean((2, 3))


class Joins(nn.Module):
    """Adds, products, concatenations, splits, functions of one variable, a convolution over one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(4, 8, 3, stride=2, padding=1)
        self.gate = nn.Linear(8, 8)
        self.head = nn.Linear(12, 5)
        self.offset = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.line(x.flatten(2)))
        pooled = F.adaptive_avg_pool2d(y[..., None], 1).flatten(1)
        gate = torch.sigmoid(self.gate(pooled))
        y = y * gate[..., None] - 0.5 * F.hardswish(y)
        left, right = y.mean(2).chunk(2, 1)
        return self.head(torch.cat([left, F.leaky_relu(right), torch.tanh(left) + self.offset[4:]], 1))


class Transformer(nn.Module):
    """One block: attention, layer norm, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x.flatten(2))
        q, k, v = (t.reshape(len(y), -1, 2, 4).transpose(1, 2) for t in self.qkv(self.norm(y)).chunk(3, -1))
        y = y + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(y), -1, 8))
        y = y + self.down(F.gelu(self.up(self.norm(y))))
        return self.head(F.softmax(y.mean(1), -1))


MODELS = {"convolutions": Convolutions, "joins": Joins, "transformer": Transformer}
POLICIES = {
    "w8a8": ("w8a8",),
    "mixed": ("w4a8", "w2a4", "w8a3", "w3a6", "w1a5"),
    "low": ("wternarya8", "wbinarya4", "wbinaryabinary", "w4aternary"),
}


def quantized(kind: str, policy: str, *, seed: int = 0, **settings: object) -> tuple[nn.Module, QuantizedModel, Tensor]:
    """A model with random weights and statistics, a policy applied, and samples."""
    torch.manual_seed(seed)
    model = MODELS[kind]().eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)  # factors below 0 among them
        nn.init.normal_(norm.bias)
        assert norm.running_mean is not None
        nn.init.normal_(norm.running_mean)
    x = torch.randn(24, 4, 4, 4)
    wrapped = QuantizedModel(model, calibration=[(x, None)], quantization=QuantizationConfig(**settings))  # type: ignore[arg-type]
    precisions = cycle(Precision.parse(text) for text in POLICIES[policy])
    wrapped.apply(Policy({name: next(precisions) for name in wrapped.layers}))
    return model, wrapped, x


def lowered(kind: str, policy: str, *, seed: int = 0, **options: object) -> tuple[IntegerModel, QuantizedModel, Tensor]:
    """The integer model of it."""
    model, wrapped, x = quantized(kind, policy, seed=seed)
    return lower(model, capture(wrapped), x, LoweringOptions(**options)), wrapped, x  # type: ignore[arg-type]
