"""A linter for quantization: what in a network makes it hard to quantize, or slow on the device, by measured cost.

In: an experiment, or a model with data and a device. Out: `Finding`s, the most expensive first. To add a rule: one
function in a file here and one line in `RULES` of `run.py`.
"""

from haq.edges.lazy import callable_room
from haq.lint.findings import Finding
from haq.lint.run import RULES, lint_experiment

__all__ = ["RULES", "Finding", "lint_experiment"]

callable_room(__name__, "haq.api", "lint")
