"""Quantization-aware training: quantizers with gradients, and a float model's trainable quantized copy.

To add a quantizer: one class in `quantizers.py` or `low_bits.py` and one line in `SCHEMES`.
"""

from haq.quant.training.model import SCHEMES, Scheme, TrainableModel
from haq.quant.training.quantizers import TrainableQuantizer

__all__ = ["SCHEMES", "Scheme", "TrainableModel", "TrainableQuantizer"]
