"""A small convolutional network for 8 x 8 digits: the quickstart's model, trained in seconds."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Stem, one residual block with a depthwise-separable branch, one strided convolution, two linear layers.

    `[n, 1, 8, 8]` -> `[n, 10]`. Small, but with each kind of layer that a search meets.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn_stem = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False)
        self.bn_depthwise = nn.BatchNorm2d(16)
        self.pointwise = nn.Conv2d(16, 16, 1, bias=False)
        self.bn_pointwise = nn.BatchNorm2d(16)
        self.down = nn.Conv2d(16, 32, 3, 2, 1, bias=False)
        self.bn_down = nn.BatchNorm2d(32)
        self.conv = nn.Conv2d(32, 32, 3, 1, 1, bias=False)
        self.bn_conv = nn.BatchNorm2d(32)
        self.fc1 = nn.Linear(32 * 4, 64)
        self.fc2 = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_stem(self.stem(x)))
        y = F.relu(self.bn_depthwise(self.depthwise(x)))
        x = F.relu(x + self.bn_pointwise(self.pointwise(y)))
        x = F.relu(self.bn_down(self.down(x)))
        x = F.max_pool2d(F.relu(self.bn_conv(self.conv(x))), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc2(x)
        return logits
