import pytest
import torch
from small_models import Conv, TwoHeads, quantize, rows, seeded

from haq.quant import QuantizedModel
from haq.zoo import Split


@pytest.fixture
def images() -> Split:
    return Split(rows(1, 96, 2, 5, 5), torch.arange(96) % 4)


@pytest.fixture
def conv_model(images: Split) -> QuantizedModel:
    return quantize(seeded(Conv), images)


@pytest.fixture
def vectors() -> Split:
    inputs = rows(2, 64, 5)
    with torch.no_grad():
        outputs = seeded(TwoHeads)(inputs)
    # Near what the network says, as after training: any error raises the loss.
    return Split(inputs, torch.cat([outputs["place"], outputs["size"]], 1) + 0.01 * rows(3, 64, 3))


@pytest.fixture
def two_heads(vectors: Split) -> QuantizedModel:
    return quantize(seeded(TwoHeads), vectors)
