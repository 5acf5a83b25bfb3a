"""Sensitivity: how much each format of each layer is predicted to raise the loss.

In: a quantized model, formats, data. Out: a `SensitivityTable`. To add a metric: one file with a function `score`, and
one line in `METRICS` of `table.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from haq.edges.lazy import callable_room, lazy_names

if TYPE_CHECKING:
    from haq.sensitivity.base import Metric, SensitivityTable
    from haq.sensitivity.table import METRICS, sensitivity_table

__all__ = [
    "METRICS",
    "Metric",
    "SensitivityTable",
    "sensitivity_table",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "haq.sensitivity.base": ("Metric", "SensitivityTable"),
        "haq.sensitivity.table": ("METRICS", "sensitivity_table"),
    },
)

callable_room(__name__, "haq.api", "sensitivity")
