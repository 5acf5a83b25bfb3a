"""One file per search strategy, and what only that strategy needs. To add one: a file, and a line below.

In: a `Problem` and measured trials. Out: policies to measure next.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from haq.problem.problem import Problem
from haq.search.strategies.actor_critic import ActorCritic
from haq.search.strategies.adaptive_ilp import AdaptiveILP
from haq.search.strategies.bayesian import Bayesian
from haq.search.strategies.differentiable import Differentiable, MixedModel
from haq.search.strategies.evolutionary import Evolutionary
from haq.search.strategies.greedy import Greedy
from haq.search.strategies.ilp import ILP
from haq.search.strategies.random_search import RandomSearch
from haq.search.strategies.uniform import Uniform
from haq.search.strategy import SearchStrategy
from haq.search.warm_start import Reader, WarmStarted, no_files, warm_sources
from haq.solve.settings import SOLVER_OPTIONS
from haq.values.policy import Policy

STRATEGIES: dict[str, type[SearchStrategy]] = {
    "ilp": ILP,
    "adaptive_ilp": AdaptiveILP,
    "greedy": Greedy,
    "uniform": Uniform,
    "random": RandomSearch,
    "actor_critic": ActorCritic,
    "evolutionary": Evolutionary,
    "bayesian": Bayesian,
    "differentiable": Differentiable,
}


def strategy_class(name: str) -> type[SearchStrategy]:
    """The strategy called `name`.

    Raises:
        KeyError: unknown name; the message lists the known ones.
    """
    if name not in STRATEGIES:
        raise KeyError(f"unknown strategy {name!r}; known: {', '.join(sorted(STRATEGIES))}")
    return STRATEGIES[name]


def make_strategy(
    name: str,
    problem: Problem,
    *,
    seed: int = 0,
    options: Mapping[str, Any] = MappingProxyType({}),
    read: Reader = no_files,
    model: Callable[[], MixedModel] | None = None,
) -> SearchStrategy:
    """The strategy called `name` with its options; with `warm_start` among them, others' policies come first.

    Args:
        name: in `STRATEGIES`.
        problem: tables, budgets and objective.
        seed: of the strategy, and of those whose policies come first.
        options: as under `[search.options]`, checked by `check_options`.
        read: gives the policies of a source of `warm_start` that is no strategy.
        model: makes the model that a strategy with `needs_model` trains.

    Raises:
        KeyError: unknown name.
        InputError: a model is needed and missing, or options that contradict each other.
    """
    strategy: Any = strategy_class(name).variant_of(options)
    sources, count = warm_sources(strategy, options)
    own = strategy.own_options(options)
    if strategy.needs_model and model is not None:
        own["model"] = model()
    inner: SearchStrategy = strategy(problem, seed=seed, **own)

    solving = {key: value for key, value in options.items() if key in SOLVER_OPTIONS}

    def policies_of(source: str) -> list[Policy]:
        if source in STRATEGIES:
            return make_strategy(source, problem, seed=seed, options=solving, model=model).suggest(count)
        return read(source, count)

    return WarmStarted(inner, lambda: [p for source in sources for p in policies_of(source)]) if sources else inner
