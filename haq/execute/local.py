"""Evaluations in this process, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from haq.execute.outcome import outcome
from haq.values.policy import Policy
from haq.values.trial import Measurement


class LocalExecutor:
    """Evaluates in this process, one policy at a time, in the order of submission."""

    def __init__(self, evaluator: Callable[[Policy], Measurement]) -> None:
        self._evaluator = evaluator
        self._waiting: deque[Policy] = deque()

    @property
    def capacity(self) -> int:
        return 1

    def submit(self, policy: Policy) -> None:
        self._waiting.append(policy)

    def next_completed(self) -> tuple[Policy, Measurement]:
        """The oldest submitted policy and its measurement.

        Raises:
            ValueError: nothing was submitted.
        """
        if not self._waiting:
            raise ValueError("no policy is waiting; submit one first")
        policy = self._waiting.popleft()
        return policy, outcome(self._evaluator, policy)

    def finished(self) -> list[tuple[Policy, Measurement]]:
        """Nothing: a policy is evaluated when it is waited for."""
        return []

    def close(self) -> None:
        """Nothing is held."""
