"""What makes up for quantization error without training the network, one file per repair.

In: a `QuantizedModel` under a policy, and calibration data of the train split. Out: the same model with rounded weights
and shifted biases, until the next policy is applied. `equalize` and `absorb_bias` rewrite the float model
beforehand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from haq.edges.lazy import lazy_names

if TYPE_CHECKING:
    from haq.repair.absorb import absorb_bias
    from haq.repair.run import ORDER, in_order, repair, with_repair
    from haq.repair.store import RepairedWeights

__all__ = ["ORDER", "RepairedWeights", "absorb_bias", "in_order", "repair", "with_repair"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "haq.repair.absorb": ("absorb_bias",),
        "haq.repair.run": ("ORDER", "in_order", "repair", "with_repair"),
        "haq.repair.store": ("RepairedWeights",),
    },
)
