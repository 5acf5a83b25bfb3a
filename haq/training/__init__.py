"""Quantization-aware training: quantizers with gradients, and a float model's trainable quantized copy.

In: a float model, a policy, the train split. Out: a trained copy. To add a quantizer: one class in
`learned_quantizers.py` or `low_bit_quantizers.py` and one line in `choice.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from haq.edges.lazy import lazy_names

if TYPE_CHECKING:
    from haq.training.choice import SCHEMES, Scheme
    from haq.training.fine_tuning import FineTuner
    from haq.training.learned_quantizers import TrainableQuantizer
    from haq.training.mixed_precision_model import MixedModel, check_not_folded
    from haq.training.trainable_model import TrainableModel

__all__ = [
    "SCHEMES",
    "FineTuner",
    "MixedModel",
    "Scheme",
    "TrainableModel",
    "TrainableQuantizer",
    "check_not_folded",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "haq.training.fine_tuning": ("FineTuner",),
        "haq.training.learned_quantizers": ("TrainableQuantizer",),
        "haq.training.mixed_precision_model": ("MixedModel", "check_not_folded"),
        "haq.training.choice": ("SCHEMES", "Scheme"),
        "haq.training.trainable_model": ("TrainableModel",),
    },
)
