"""ResNet-18 and EfficientNet-Lite0 at 224 x 224 with random weights and images: latency does not depend on them."""

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


def conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm; the padding keeps the size, over the stride."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
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


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = expand * inputs
        self.expand = conv(inputs, hidden, 1) if expand > 1 else None
        self.depthwise = conv(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = conv(hidden, outputs, 1)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 (Tan and Le, 2019) without squeeze-and-excitation, with ReLU6, stem and head unscaled."""

    def __init__(self) -> None:
        super().__init__()
        stages = ((1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2))
        stages += ((6, 112, 3, 5, 1), (6, 192, 4, 5, 2), (6, 320, 1, 3, 1))
        self.stem, blocks, width = conv(3, 32, 3, stride=2), list[nn.Module](), 32
        for expand, outputs, repeats, kernel, stride in stages:
            for index in range(repeats):
                blocks.append(Inverted(width, outputs, expand, kernel, stride if index == 0 else 1))
                width = outputs
        self.blocks, self.head, self.fc = nn.Sequential(*blocks), conv(width, 1280, 1), nn.Linear(1280, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.stem(x)))
        return self.fc(F.relu6(self.head(x)).mean((2, 3)))


def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return ResNet18()


def efficientnet_lite0() -> nn.Module:
    torch.manual_seed(0)
    return EfficientNetLite0()
