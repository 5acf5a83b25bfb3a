"""Quantization-aware training: quantizers with gradients, and a float model's trainable quantized copy.

To add a quantizer: one class in `quantizers.py` or `low_bits.py` and one line in `SCHEMES`.
"""

from haq.training.learned_quantizers import TrainableQuantizer
from haq.training.trainable_model import SCHEMES, Scheme, TrainableModel

__all__ = ["SCHEMES", "Scheme", "TrainableModel", "TrainableQuantizer"]
