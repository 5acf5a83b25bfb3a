"""Who runs the evaluations: here one after the other."""

from __future__ import annotations

from collections import deque

from haq.evaluate.base import Evaluator
from haq.types import Measurement, Policy


class LocalExecutor:
    """Evaluates in this process, one policy at a time, in the order of submission."""

    def __init__(self, evaluator: Evaluator) -> None:
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
        return policy, self._evaluator(policy)
