"""A network with every habit that the linter knows, as an experiment of a user."""

import torch
from torch import nn


class Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Habits(nn.Module):
    """A stem of 30 channels, SiLU, a depthwise layer, a gate, a sum of unequal operands, attention over 300 places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 30, 3, padding=1)
        self.depthwise = nn.Conv2d(30, 30, 3, padding=1, groups=30)
        self.gate = Gate(30)
        self.mixed = nn.Conv2d(30, 30, 1)
        self.query = nn.Linear(30, 300)
        self.head = nn.Linear(300, 10)

    def forward(self, x):
        x = nn.functional.silu(self.stem(x))
        y = self.gate(self.depthwise(x))
        x = torch.relu(x + 50 * y)
        x = self.mixed(x).mean((2, 3))
        return self.head(torch.softmax(self.query(x), -1))


def model() -> nn.Module:
    torch.manual_seed(0)
    built = Habits()
    with torch.no_grad():
        built.mixed.weight[0] *= 100  # one channel, and so a few values, much larger than all others
    return built


def data():
    generator = torch.Generator().manual_seed(1)

    def split(count):
        return torch.randn(count, 1, 8, 8, generator=generator), torch.randint(10, (count,), generator=generator)

    return split(96), split(32), split(32)
