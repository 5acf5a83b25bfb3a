"""From the files of a run to plots, a page and comparisons. Nothing here needs the model, the data or a solver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from haq.edges.lazy import lazy_names

if TYPE_CHECKING:
    from haq.report.compare import compare_runs
    from haq.report.figures.all import write_heat_map, write_plots
    from haq.report.figures.validation import write_validation
    from haq.report.html import write_report

__all__ = ["compare_runs", "write_heat_map", "write_plots", "write_report", "write_validation"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "haq.report.compare": ("compare_runs",),
        "haq.report.figures.all": ("write_heat_map", "write_plots"),
        "haq.report.figures.validation": ("write_validation",),
        "haq.report.html": ("write_report",),
    },
)
