"""Hardware-aware mixed-precision search: a PyTorch model, a device and a budget in; the best bits per layer out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from haq.edges.lazy import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from haq import evaluate, lint, search, sensitivity
    from haq.api import SearchResult, cost, inspect, profile
    from haq.experiment.config import ExperimentConfig, load_experiment
    from haq.experiment.experiment import Experiment
    from haq.export import load_quantized
    from haq.hardware import load_profile
    from haq.problem.problem import Problem, load_problem
    from haq.quant import QuantizedModel
    from haq.runs.search import run_experiment
    from haq.search import SearchStrategy
    from haq.values.errors import InfeasibleError, InputError
    from haq.values.formats import Format, Precision
    from haq.values.network import Network
    from haq.values.policy import Policy
    from haq.values.trial import Measurement, Trial
    from haq.zoo import DataSplits, Split

__all__ = [
    "DataSplits",
    "Experiment",
    "ExperimentConfig",
    "Format",
    "InfeasibleError",
    "InputError",
    "Measurement",
    "Network",
    "Policy",
    "Precision",
    "Problem",
    "QuantizedModel",
    "SearchResult",
    "SearchStrategy",
    "Split",
    "Trial",
    "cost",
    "evaluate",
    "inspect",
    "lint",
    "load_experiment",
    "load_problem",
    "load_profile",
    "load_quantized",
    "profile",
    "run_experiment",
    "search",
    "sensitivity",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "haq.api": ("SearchResult", "cost", "inspect", "profile"),
        "haq.experiment.config": ("ExperimentConfig", "load_experiment"),
        "haq.experiment.experiment": ("Experiment",),
        "haq.export": ("load_quantized",),
        "haq.hardware": ("load_profile",),
        "haq.problem.problem": ("Problem", "load_problem"),
        "haq.quant": ("QuantizedModel",),
        "haq.runs.search": ("run_experiment",),
        "haq.search": ("SearchStrategy",),
        "haq.values.errors": ("InfeasibleError", "InputError"),
        "haq.values.formats": ("Format", "Precision"),
        "haq.values.network": ("Network",),
        "haq.values.policy": ("Policy",),
        "haq.values.trial": ("Measurement", "Trial"),
        "haq.zoo": ("DataSplits", "Split"),
    },
    rooms=("evaluate", "lint", "search", "sensitivity"),
)
