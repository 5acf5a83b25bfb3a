"""ResNet-18 at 224 x 224 with random weights, and random images: latency does not depend on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haq import DataSplits, Split

IMAGES, CLASSES = 96, 1000


def images(size: int = 224) -> DataSplits:
    """Noise, in three splits."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(IMAGES, 3, size, size, generator=generator)
    targets = torch.randint(CLASSES, (IMAGES,), generator=generator)
    parts = (slice(0, 64), slice(64, 80), slice(80, 96))
    return DataSplits(*(Split(inputs[part], targets[part]) for part in parts))


def conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution and batch norm; the padding keeps the size, over the stride."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(inputs, outputs, 3, stride=stride), conv(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.conv2(F.relu(self.conv1(x))))


class ResNet18(nn.Module):
    """He et al., Deep Residual Learning for Image Recognition, 2016."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 64, 7, stride=2)
        widths = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1))
        widths += ((128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1))
        self.blocks = nn.Sequential(*(Residual(*width) for width in widths))
        self.fc = nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        return self.fc(self.blocks(x).mean((2, 3)))


def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return ResNet18()
