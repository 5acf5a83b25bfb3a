"""Tables for spreadsheets: text that a spreadsheet would take for a formula is written as text."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any

_MARK = "'"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", _MARK)


def to_cell(value: Any) -> Any:
    """`value` as it is put into a table: text that begins like a formula gets an apostrophe in front of it.

    Spreadsheets do not show that apostrophe; `from_cell` takes it off again. Numbers stay numbers.
    """
    return f"{_MARK}{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def from_cell(text: str) -> str:
    """The text that `to_cell` wrote."""
    return text[1:] if text.startswith(_MARK) and text[1:].startswith(_FORMULA) else text


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV text: a column for each key of any row, empty where a row lacks it or holds `None`."""
    entries = list(rows)
    columns = list(dict.fromkeys(key for row in entries for key in row))
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([to_cell(column) for column in columns])
    for row in entries:
        writer.writerow([to_cell(_shown(row.get(column))) for column in columns])
    return stream.getvalue()


def _shown(value: Any) -> Any:
    return "" if value is None or value != value else value
