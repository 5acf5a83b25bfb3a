"""Reading a controller's document: one line for what is wrong in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from haq.values.errors import InputError


def number_of(document: Mapping[str, Any], key: str, *, least: float = -math.inf) -> float:
    """A finite number, `least` or more.

    Raises:
        InputError: missing, or something else.
    """
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise InputError(
            f"{key} = {value!r:.80}: expected a number" + (f" of {least:g} or more" if least > -1e9 else "")
        )
    return float(value)


def floats_of(document: Mapping[str, Any], key: str, *, least: float = -math.inf) -> tuple[float, ...]:
    """A list of such numbers, not empty."""
    values = document.get(key)
    if not isinstance(values, list | tuple) or not values:
        raise InputError(f"{key} = {values!r:.80}: expected a list of numbers")
    return tuple(number_of({key: value}, key, least=least) for value in values)


def word_of(document: Mapping[str, Any], key: str, known: Iterable[str]) -> str:
    """One of the words in `known`."""
    words = list(known)
    value: Any = document.get(key)
    if not isinstance(value, str) or value not in words:
        raise InputError(f"{key} = {value!r:.80}: unknown; known: {', '.join(words)}")
    return value
