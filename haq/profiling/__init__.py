"""Measuring a device: what a model's layers and the switches between them cost on it, and how well that predicts.

To add a runtime: a class with the interface of `Runtime`, and its name in `haq/profiling/runtimes.py`.
"""

from __future__ import annotations

from haq.profiling.base import Prepared, Runtime
from haq.profiling.runtimes import RUNTIMES, RuntimeChoice, build_runtime

__all__ = ["RUNTIMES", "Prepared", "Runtime", "RuntimeChoice", "build_runtime"]
