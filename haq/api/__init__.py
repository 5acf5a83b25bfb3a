"""The front door for objects that one already has: `haq.search(model, train=..., device=..., size="40%")`.

In: a live model, data in any of torch's forms, a device. Out: results that show themselves in a notebook. The rooms
`haq.search`, `haq.evaluate` and `haq.sensitivity` can be called; they are `search`, `evaluate` and `sensitivity` here.
"""

from haq.api.live import live_experiment
from haq.api.search import SearchResult, search
from haq.api.tools import cost, evaluate, inspect, lint, profile, sensitivity

__all__ = [
    "SearchResult",
    "cost",
    "evaluate",
    "inspect",
    "lint",
    "live_experiment",
    "profile",
    "search",
    "sensitivity",
]
