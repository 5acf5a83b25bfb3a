"""Sums of products of binary, ternary and few-bit integers by population counts, in C compiled on demand.

In: codes as int8 arrays. Out: int32 sums, those of the specification bit for bit.
"""

from __future__ import annotations

from haq.engine.popcount.compiled import compiler, paths
from haq.engine.popcount.runner import PopcountRunner
from haq.engine.popcount.sums import PackedLayer, Scheme

__all__ = ["PackedLayer", "PopcountRunner", "Scheme", "compiler", "paths"]
