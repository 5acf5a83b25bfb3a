"""Measuring a device: what a model's layers and the switches between them cost on it, and how well that predicts.

To add a runtime: a class with the interface of `Runtime`, and its name in `haq/profiling/runtimes/choice.py`.
"""

from __future__ import annotations

from haq.profiling.runtimes.base import Prepared, Runtime
from haq.profiling.runtimes.choice import RUNTIMES, RuntimeChoice, build_runtime

__all__ = ["RUNTIMES", "Prepared", "Runtime", "RuntimeChoice", "build_runtime"]
