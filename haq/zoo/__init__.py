"""Reference models and data sets, by name. To add one: one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from haq.zoo.data import DataSplits, Split, load_digits, load_fashion_mnist
from haq.zoo.digits_cnn import DigitsCNN
from haq.zoo.mobilenet import MobileNetV2Small
from haq.zoo.resnet import ResNet20

MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": DigitsCNN,
    "mobilenet_v2_small": MobileNetV2Small,
    "resnet20": ResNet20,
}
DATASETS: dict[str, Callable[..., DataSplits]] = {"digits": load_digits, "fashion_mnist": load_fashion_mnist}
CHECKPOINTS = Path(__file__).parent / "checkpoints"


def load_model(name: str) -> nn.Module:
    """The trained reference model `name`, in evaluation mode.

    Raises:
        KeyError: unknown name; the message lists the known ones.
    """
    if name not in MODELS:
        raise KeyError(f"unknown model {name!r}; the zoo has {', '.join(sorted(MODELS))}")
    model = MODELS[name]()
    model.load_state_dict(load_file(CHECKPOINTS / f"{name}.safetensors"))
    return model.eval()


__all__ = ["CHECKPOINTS", "DATASETS", "MODELS", "DataSplits", "Split", "load_model"]
