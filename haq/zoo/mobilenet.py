"""A MobileNetV2-style network for small images (Sandler et al., CVPR 2018)."""

from __future__ import annotations

from torch import Tensor, nn

_BLOCKS = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 40, 3, 2), (4, 80, 2, 1))
"""Expansion, channels, repeats, first stride of each group of inverted residuals."""


def _conv_bn(
    in_channels: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    ]
    return nn.Sequential(*layers, nn.ReLU6()) if act else nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """Expand (1 x 1), depthwise (3 x 3), project (1 x 1, linear), with a shortcut where shapes agree."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == channels
        self.expand = _conv_bn(in_channels, hidden, 1) if expansion != 1 else nn.Identity()
        self.depthwise = _conv_bn(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = _conv_bn(hidden, channels, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNetV2Small(nn.Module):
    """Eight inverted residuals, about 0.2 M weights; `[n, in_channels, h, w]` -> `[n, classes]`."""

    def __init__(self, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = _conv_bn(in_channels, 16, 3)
        blocks: list[nn.Module] = []
        channels = 16
        for expansion, width, repeats, first_stride in _BLOCKS:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(channels, width, first_stride if repeat == 0 else 1, expansion))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv_bn(channels, 256, 1)
        self.classifier = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits
