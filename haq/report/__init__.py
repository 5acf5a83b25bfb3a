"""From the files of a run to plots, a page and comparisons. Nothing here needs the model, the data or a solver."""

from haq.report.compare import compare_runs
from haq.report.figures.all import write_heat_map, write_plots
from haq.report.figures.validation import write_validation
from haq.report.html import write_report

__all__ = ["compare_runs", "write_heat_map", "write_plots", "write_report", "write_validation"]
