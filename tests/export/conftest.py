from collections.abc import Callable

import pytest
import torch
from torch import nn

from haq import QuantizedModel
from haq.quant.settings import QuantizationConfig
from haq.zoo import load_digits, load_model


@pytest.fixture(scope="session")
def digits():
    return load_digits()


@pytest.fixture(scope="session")
def digits_images(digits) -> torch.Tensor:
    """The search and the test images: 719."""
    return torch.cat([digits.search.inputs, digits.test.inputs])


@pytest.fixture(scope="session")
def digits_labels(digits) -> torch.Tensor:
    return torch.cat([digits.search.targets, digits.test.targets])


@pytest.fixture(scope="session")
def digits_cnn() -> nn.Module:
    return load_model("digits_cnn")


@pytest.fixture(scope="session")
def quantize_digits(digits, digits_cnn) -> Callable[..., QuantizedModel]:
    """The quantized digits model for some settings, made once for each."""
    made = {}

    def make(**settings) -> QuantizedModel:
        key = tuple(sorted(settings.items()))
        if key not in made:
            config = QuantizationConfig(**settings)
            batches = list(digits.train.head(256).batches(256))
            made[key] = QuantizedModel(digits_cnn, quantization=config, calibration=batches)
        return made[key]

    return make
