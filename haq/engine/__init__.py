"""Integer-only inference: a specification in plain integers, and an engine that equals it bit for bit.

In: a quantized model's state. Out: an `IntegerModel` (a graph of integer operators), its file, its outputs.
"""

from __future__ import annotations

from haq.engine.file import load_integer, save_integer
from haq.engine.graph import IntegerModel, Node, TensorFormat
from haq.engine.lower import LoweringOptions, lower
from haq.engine.run import IntegerRunner

__all__ = [
    "IntegerModel",
    "IntegerRunner",
    "LoweringOptions",
    "Node",
    "TensorFormat",
    "load_integer",
    "lower",
    "save_integer",
]
