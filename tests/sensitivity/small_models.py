"""Small models for tests of sensitivity metrics."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haq.quant import QuantizedModel
from haq.quant.settings import QuantizationConfig
from haq.values.formats import Format
from haq.zoo import Split


def formats_of(model: QuantizedModel, *names: str) -> dict[str, tuple[list[Format], list[Format]]]:
    """The same formats for all weights and activations."""
    formats = [Format.parse(name) for name in names]
    return dict.fromkeys(model.layers, (formats, formats))


def quantize(model: nn.Module, split: Split, **settings: Any) -> QuantizedModel:
    calibration = list(split.batches(64))
    return QuantizedModel(model, quantization=QuantizationConfig(**settings), calibration=calibration)


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(build: Any) -> nn.Module:
    """A module built with fixed random weights, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module: nn.Module = build()
    return module.eval()


class Conv(nn.Module):
    """Convolution, batch norm, ReLU, linear: `[n, 2, 5, 5]` -> `[n, 4]`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.running_var, 0.2, 2.0)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class TwoHeads(nn.Module):
    """Regression with two outputs in a dict, and one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 5)
        self.place = nn.Linear(5, 2)
        self.size = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.body(F.relu(self.body(x))))
        return {"place": self.place(x), "size": self.size(x)}


def two_head_loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return F.mse_loss(outputs["place"], targets[:, :2]) + 0.5 * F.mse_loss(outputs["size"], targets[:, 2:])
