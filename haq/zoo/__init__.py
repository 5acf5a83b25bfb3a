"""Reference models and data sets, by name. To add one: one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from haq.zoo.data import DataSplits, Split, load_digits, load_fashion_mnist
from haq.zoo.digits_cnn import DigitsCNN
from haq.zoo.efficientnet import EfficientNetLite0, imagenet_weights
from haq.zoo.images import UNLABELLED, load_images
from haq.zoo.mobilenet import MobileNetV2Small
from haq.zoo.resnet import ResNet20

MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": DigitsCNN,
    "efficientnet_lite0": EfficientNetLite0,
    "mobilenet_v2_small": MobileNetV2Small,
    "resnet20": ResNet20,
}
DATASETS: dict[str, Callable[..., DataSplits]] = {
    "digits": load_digits,
    "fashion_mnist": load_fashion_mnist,
    "images": load_images,
}
CHECKPOINTS = Path(__file__).parent / "checkpoints"
PACKAGED: dict[str, Callable[[], dict[str, Tensor]]] = {"efficientnet_lite0": imagenet_weights}
"""Models whose weights come in a package of their own; those of all others lie in `CHECKPOINTS`."""


def load_model(name: str) -> nn.Module:
    """The trained reference model `name`, in evaluation mode.

    Raises:
        KeyError: unknown name; the message lists the known ones.
        InputError: the package that has its weights is not installed.
    """
    if name not in MODELS:
        raise KeyError(f"unknown model {name!r}; the zoo has {', '.join(sorted(MODELS))}")
    model = MODELS[name]()
    weights = PACKAGED[name]() if name in PACKAGED else load_file(CHECKPOINTS / f"{name}.safetensors")
    model.load_state_dict(weights)
    return model.eval()


__all__ = ["CHECKPOINTS", "DATASETS", "MODELS", "PACKAGED", "UNLABELLED", "DataSplits", "Split", "load_model"]
