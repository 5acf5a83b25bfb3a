"""Search: strategies that propose policies, and the loop that measures them. To add one: a file, and a line below."""

from haq.search.accuracy_drop import AccuracyDropSearch
from haq.search.actor_critic import ActorCritic
from haq.search.adaptive_ilp import AdaptiveILP
from haq.search.base import SearchStrategy, check_options, run_search
from haq.search.bayesian import Bayesian
from haq.search.evolutionary import Evolutionary
from haq.search.greedy import Greedy
from haq.search.ilp import ILP
from haq.search.random_search import RandomSearch
from haq.search.uniform import Uniform, uniform_policies

__all__ = [
    "ILP",
    "STRATEGIES",
    "AccuracyDropSearch",
    "ActorCritic",
    "AdaptiveILP",
    "Bayesian",
    "Evolutionary",
    "Greedy",
    "RandomSearch",
    "SearchStrategy",
    "Uniform",
    "check_options",
    "run_search",
    "strategy_class",
    "uniform_policies",
]

STRATEGIES: dict[str, type[SearchStrategy]] = {
    "ilp": ILP,
    "adaptive_ilp": AdaptiveILP,
    "greedy": Greedy,
    "uniform": Uniform,
    "random": RandomSearch,
    "actor_critic": ActorCritic,
    "evolutionary": Evolutionary,
    "bayesian": Bayesian,
}


def strategy_class(name: str) -> type[SearchStrategy]:
    """The strategy called `name`.

    Raises:
        KeyError: unknown name; the message lists the known ones.
    """
    if name not in STRATEGIES:
        raise KeyError(f"unknown strategy {name!r}; known: {', '.join(sorted(STRATEGIES))}")
    return STRATEGIES[name]
