"""The errors a caller must tell apart. Everything else that is raised on purpose is a `ValueError` or `KeyError`."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LONGEST_VALUE = 80
_LONGEST_WORD = 400
_LONGEST_MESSAGE = 4000
_QUOTED = re.compile(r"(?<!\w)'[^']*'|\"[^\"]*\"")
_LONG = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")


def printable(text: str) -> str:
    """`text` with control characters escaped, so that names from a file cannot steer a terminal; line ends stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def shortened(message: str) -> str:
    """A message with quoted values cut to 80 characters, and whatever else is too long to be read cut as well."""
    if len(message) <= _LONGEST_VALUE:
        return message
    message = _QUOTED.sub(_cut, message)
    message = _LONG.sub(lambda found: f"{found[0][:_LONGEST_VALUE]}…", message)
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"


def _cut(quoted: re.Match[str]) -> str:
    text = quoted[0]
    return text if len(text) <= _LONGEST_VALUE + 2 else f"{text[: _LONGEST_VALUE + 1]}…{text[0]}"


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: file, key, value, remedy. Exit code 2.

    Values in quotes are cut to 80 characters: a file may hold a megabyte in the place of a name.
    """

    def __init__(self, message: object) -> None:
        super().__init__(shortened(str(message)))


class InfeasibleError(ValueError):
    """No policy meets the budgets. Exit code 3.

    Attributes:
        minimum: budgeted metric -> least achievable value of that metric alone.
    """

    def __init__(self, message: str, minimum: Mapping[str, float]) -> None:
        super().__init__(shortened(message))
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
