"""For authors: toy problems whose optimum is listed, and the checks that what they add must pass.

In: a class or a document of theirs. Out: nothing, or an `AssertionError` that says what it did wrong. A test is one
line: `check_strategy(MyStrategy)`, `check_cost_model(document)`, `check_controller(MyController(), ...)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from haq.edges.lazy import lazy_names

if TYPE_CHECKING:
    from haq.testing.controllers import check_controller
    from haq.testing.cost_models import check_cost_model
    from haq.testing.strategies import TOYS, StrategyFactory, Toy, chain_document, check_strategy, layer, play

__all__ = [
    "TOYS",
    "StrategyFactory",
    "Toy",
    "chain_document",
    "check_controller",
    "check_cost_model",
    "check_strategy",
    "layer",
    "play",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "haq.testing.strategies": (
            "TOYS",
            "StrategyFactory",
            "Toy",
            "chain_document",
            "check_strategy",
            "layer",
            "play",
        ),
        "haq.testing.cost_models": ("check_cost_model",),
        "haq.testing.controllers": ("check_controller",),
    },
)
