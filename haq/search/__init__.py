"""Search: the contract of a strategy, the loop that measures what it proposes, the journal.

In: a `Problem`, a strategy, an executor. Out: trials. Strategies are in `strategies/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from haq.edges.lazy import callable_room, lazy_names

if TYPE_CHECKING:
    from haq.search.loop import run_search
    from haq.search.strategies import STRATEGIES, make_strategy, strategy_class
    from haq.search.strategies.accuracy_drop import AccuracyDropSearch
    from haq.search.strategies.actor_critic import ActorCritic
    from haq.search.strategies.adaptive_ilp import AdaptiveILP
    from haq.search.strategies.bayesian import Bayesian
    from haq.search.strategies.differentiable import Differentiable
    from haq.search.strategies.evolutionary import Evolutionary
    from haq.search.strategies.greedy import Greedy
    from haq.search.strategies.ilp import ILP
    from haq.search.strategies.random_search import RandomSearch
    from haq.search.strategies.uniform import Uniform, uniform_policies
    from haq.search.strategy import SearchStrategy, check_options

__all__ = [
    "ILP",
    "STRATEGIES",
    "AccuracyDropSearch",
    "ActorCritic",
    "AdaptiveILP",
    "Bayesian",
    "Differentiable",
    "Evolutionary",
    "Greedy",
    "RandomSearch",
    "SearchStrategy",
    "Uniform",
    "check_options",
    "make_strategy",
    "run_search",
    "strategy_class",
    "uniform_policies",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "haq.search.loop": ("run_search",),
        "haq.search.strategies": ("STRATEGIES", "make_strategy", "strategy_class"),
        "haq.search.strategies.accuracy_drop": ("AccuracyDropSearch",),
        "haq.search.strategies.actor_critic": ("ActorCritic",),
        "haq.search.strategies.adaptive_ilp": ("AdaptiveILP",),
        "haq.search.strategies.bayesian": ("Bayesian",),
        "haq.search.strategies.differentiable": ("Differentiable",),
        "haq.search.strategies.evolutionary": ("Evolutionary",),
        "haq.search.strategies.greedy": ("Greedy",),
        "haq.search.strategies.ilp": ("ILP",),
        "haq.search.strategies.random_search": ("RandomSearch",),
        "haq.search.strategies.uniform": ("Uniform", "uniform_policies"),
        "haq.search.strategy": ("SearchStrategy", "check_options"),
    },
)

callable_room(__name__, "haq.api", "search")
