"""Telling the caller how far a run has come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Reporter(Protocol):
    """Shows the progress of a run; `haq.terminal` draws it, tests leave it out."""

    def stage(self, name: str) -> None:
        """A new stage begins."""

    def step(self, done: int, total: int) -> None:
        """`done` of `total` steps of this stage are done."""

    def note(self, text: str) -> None:
        """One line worth keeping on the screen."""


class Silent:
    """A `Reporter` that shows nothing."""

    def stage(self, name: str) -> None: ...
    def step(self, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...


class Stages:
    """Names the stages of a run to the reporter and keeps their wall seconds.

    Attributes:
        reporter: to tell.
        seconds: key of each finished stage -> wall seconds.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, key: str, name: str) -> Iterator[None]:
        """A stage called `name` for the length of the block."""
        self.reporter.stage(name)
        start = time.perf_counter()
        yield
        self.seconds[key] = round(time.perf_counter() - start, 3)
