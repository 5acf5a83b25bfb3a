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

    @classmethod
    def of(
        cls, minimum: Mapping[str, float], budgets: Mapping[str, float], *, device: str = "", proven: bool = True
    ) -> InfeasibleError:
        """The error with the one message that all searches give.

        Args:
            minimum: budgeted metric -> least achievable value of that metric alone; may lack some.
            budgets: metric -> bound.
            device: its name.
            proven: whether nothing is within budget, or nothing was found.
        """
        begin = "no policy meets the budgets" if proven else "found no policy within the budgets"
        where = f" on {device}" if device else ""
        least = ", ".join(f"{metric} {value:.6g} (budget {budgets[metric]:.6g})" for metric, value in minimum.items())
        alone = "least achievable, each alone" if proven else "least found, each alone"
        return cls(
            f"{begin}{where}; {alone}: {least or 'not proven in the time limit'}; raise the budget or allow more "
            "formats in [space]",
            minimum,
        )
