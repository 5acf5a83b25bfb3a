"""Quantization: number formats as torch computations, calibration, and a model whose formats switch in place.

In: a float model and calibration data. Out: a `QuantizedModel` that takes any policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from haq.edges.lazy import lazy_names

if TYPE_CHECKING:
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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "haq.quant.compensation": ("correct_bias", "reestimate_batch_norm"),
        "haq.quant.formats.base": ("Quantizer",),
        "haq.quant.model": ("QuantizedModel", "resolve"),
        "haq.quant.weights": ("WeightQuantizer",),
    },
)
