"""For authors: toy problems whose optimum is listed, and the checks that what they add must pass.

In: a class or a document of theirs. Out: nothing, or an `AssertionError` that says what it did wrong. A test is one
line: `check_strategy(MyStrategy)`, `check_cost_model(document)`.
"""

from haq.testing.cost_models import check_cost_model
from haq.testing.strategies import TOYS, StrategyFactory, Toy, chain_document, check_strategy, layer, play

__all__ = ["TOYS", "StrategyFactory", "Toy", "chain_document", "check_cost_model", "check_strategy", "layer", "play"]
