"""`[search]` of the experiment file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from haq.edges.validation import Section


class SearchConfig(Section):
    """Which strategy searches, and for how long."""

    strategy: str = "ilp"
    max_trials: int = Field(8, ge=1)
    """How many policies to measure; the uniform and greedy baselines come on top."""
    parallel: int | None = Field(None, ge=1)
    """How many proposals may be open at once; default: the number of workers. With the seed, fixes what is proposed."""
    remeasure: int = Field(0, ge=0)
    """With a profile of `haq profile`: time this many of the best policies end to end, correct, and solve again."""
    answer: Literal["measured", "fitted"] = "measured"
    """The answer: the best score on the search split, or the least loss by a fit to all that was measured, which takes
    the noise of few samples out."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the strategy, e.g. `time_limit`, `gap`."""
