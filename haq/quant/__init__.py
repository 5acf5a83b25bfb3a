"""Quantization: number formats as torch computations, calibration, and a model whose formats switch in place."""

from haq.quant.compensation import correct_bias, reestimate_batch_norm
from haq.quant.formats.base import Quantizer
from haq.quant.model import QuantizedModel, resolve
from haq.quant.weights import WeightQuantizer

__all__ = [
    "QuantizedModel",
    "Quantizer",
    "WeightQuantizer",
    "correct_bias",
    "reestimate_batch_norm",
    "resolve",
]
