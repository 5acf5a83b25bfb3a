"""The base of every section of a file that a user writes, and pydantic's errors on one line."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

REFERENCE_PATTERN = r"^[\w.]+:[\w.]+$"
Reference = Annotated[str, Field(pattern=REFERENCE_PATTERN)]
"""`module:function`, importable from the working directory or the folder of the experiment file."""


class Section(BaseModel):
    """Frozen; an unknown key or a number that is not finite is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def one_line(error: ValidationError, *, prefix: str = "") -> str:
    """The first problem of a pydantic error as `key: what is wrong (got value)`; `prefix`: the section read."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in ((prefix,) if prefix else ()) + first["loc"]) or "top level"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; remove it or check its spelling"
    if first["type"] == "missing":
        return f"{key}: missing; add it"
    more = error.error_count() - 1
    got = repr(first["input"])
    shown = f" (got {got[:80]}{'…' if len(got) > 80 else ''})" if first["type"] != "value_error" else ""
    return f"{key}: {message}{shown}{f'; and {more} more' if more else ''}"
