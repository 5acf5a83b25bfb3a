"""Small networks with one kind of layer or join each, with random weights and batch norms that do something."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haq import Policy, Precision

FORMATS = [*(str(bits) for bits in range(1, 10)), *["12", "16", "20", "ternary", "binary", "fp16", "bf16", "fp32"]]


def random_policy(layers, seed: int) -> Policy:
    rng = random.Random(seed)
    return Policy({name: Precision.parse(f"w{rng.choice(FORMATS)}a{rng.choice(FORMATS)}") for name in layers})


class Depthwise(nn.Module):
    input_shape = (4, 9, 9)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu6(self.norm(self.depthwise(F.relu(self.first(x)))))).mean((2, 3))


class Transposed(nn.Module):
    input_shape = (6, 5, 5)

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.ConvTranspose2d(4, 6, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(F.relu(self.norm(self.up(x)))).flatten(1)


class OneDimensional(nn.Module):
    input_shape = (3, 20)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 5, stride=2)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Conv1d(8, 4, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.conv(x)))).mean(2)


class Tokens(nn.Module):
    """Linear layers over three dimensions, one without a bias, and over two with a batch norm behind."""

    input_shape = (7, 16)

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16, bias=False)
        self.head = nn.Linear(16, 12)
        self.norm = nn.BatchNorm1d(12)
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(F.gelu(self.up(x)))
        return self.last(F.relu(self.norm(self.head(x.mean(1)))))


class Branches(nn.Module):
    """A tensor that two layers read, their outputs added and concatenated, and a layer that is called twice."""

    input_shape = (4, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(4, 4, 3, padding=1)
        self.right = nn.Conv2d(4, 4, 1)
        self.twice = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        y = torch.cat([F.relu(left + right), F.max_pool2d(right, 3, 1, 1)], 1)
        y = F.relu(self.twice(F.relu(self.twice(y))))
        return self.last(y.mean((2, 3)))


class Padded(nn.Module):
    """More zeros at the far side, before a layer and before two that read them together."""

    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.left = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.right = nn.Conv2d(8, 8, 3)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(F.relu6(self.first(F.pad(x, (0, 1, 0, 1)))), (1, 2, 1, 1))
        return self.last(F.relu6(self.left(y)) + F.relu6(self.right(y))).mean((2, 3))


MODELS = {model.__name__: model for model in (Depthwise, Transposed, OneDimensional, Tokens, Branches, Padded)}


def make(name: str) -> tuple[nn.Module, Tensor]:
    """The network, and 64 inputs of it. Half of the batch norms' weights are negative."""
    torch.manual_seed(sum(map(ord, name)))
    model = MODELS[name]().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            with torch.no_grad():
                norm.weight.normal_()
                norm.bias.normal_()
                norm.running_mean.normal_(std=0.3)
                norm.running_var.uniform_(0.5, 2.0)
    return model, torch.randn(64, *model.input_shape)


class Saturating(nn.Module):
    """Neighbouring products of 255 and 127: sums of two leave 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 3)
        self.fc = nn.Linear(4 * 4 * 4, 3)
        for layer in (self.conv, self.fc):
            nn.init.ones_(layer.weight)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))


def saturating(sign: float = 1.0) -> tuple[nn.Module, Tensor]:
    """The model, its weights of that sign, and inputs near the end of their range."""
    torch.manual_seed(0)
    model, x = Saturating().eval(), torch.rand(16, 8, 6, 6) * 0.01 + 0.99
    for layer in (model.conv, model.fc):
        layer.weight.data.mul_(sign)
    model.conv.bias.data.fill_(100.0)
    return model, x
