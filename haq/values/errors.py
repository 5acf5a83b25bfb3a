"""The errors a caller must tell apart. Everything else that is raised on purpose is a `ValueError` or `KeyError`."""

from __future__ import annotations

from collections.abc import Mapping


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: file, key, value, remedy. Exit code 2."""


class InfeasibleError(ValueError):
    """No policy meets the budgets. Exit code 3.

    Attributes:
        minimum: budgeted metric -> least achievable value of that metric alone.
    """

    def __init__(self, message: str, minimum: Mapping[str, float]) -> None:
        super().__init__(message)
        self.minimum = dict(minimum)
