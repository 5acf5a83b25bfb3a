"""What has been measured so far, on disk: a killed `haq profile` goes on where it stopped."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from haq.edges.documents import LARGEST_JOURNAL, finite, lock, open_journal, parse_json, read_bytes
from haq.values.errors import InputError

_SHOWN_CHANGES = 3


class Measurements:
    """A file of JSON lines: the setup, then one entry `{name: value}` each, flushed as it is written.

    A last line without its newline was torn by a kill and is dropped.

    Attributes:
        entries: `(name, value)` in order.
    """

    def __init__(self, path: Path, setup: Mapping[str, Any], *, resume: bool) -> None:
        """Start a file, or with `resume` go on with one.

        Raises:
            InputError: it is there and not to be resumed, is not there and is, is of another setup, or cannot be
                written.
        """
        self.path, self.entries = path, list[tuple[str, Any]]()
        document = json.loads(json.dumps(finite(setup), default=str))
        if resume and not path.exists():
            raise InputError(f"{path}: no such file: nothing to resume; start without --resume")
        begun = path.exists() and b"\n" in read_bytes(path, limit=LARGEST_JOURNAL)
        if begun and not resume:
            raise InputError(f"{path}: measurements already exist; add --resume to go on, or name another --out")
        self._open()
        try:
            if begun:
                self._read(document)
            else:  # new, or killed before its first line was whole
                self._stream.truncate(0)
                self.add("setup", document)
        except InputError:
            self.close()
            raise

    def of(self, name: str) -> list[Any]:
        """The values of all entries called `name`."""
        return [value for key, value in self.entries if key == name]

    def add(self, name: str, value: Any) -> None:
        """Append an entry; it is on disk when this returns.

        Raises:
            InputError: the disk does not take it.
        """
        try:
            self._stream.write(json.dumps({name: finite(value)}).encode() + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}; free space and --resume") from error
        self.entries.append((name, value))

    def close(self) -> None:
        """No more entries."""
        self._stream.close()

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = os.fdopen(open_journal(self.path), "ab")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}; name another --out") from error
        if not lock(self._stream):
            self.close()
            raise InputError(f"{self.path}: another haq is writing it; wait for it or name another --out")

    def _read(self, setup: Mapping[str, Any]) -> None:
        raw = read_bytes(self.path, limit=LARGEST_JOURNAL)
        whole = raw[: raw.rfind(b"\n") + 1]
        try:
            entries = [_entry(line) for line in whole.splitlines()]
            (name, found), *_ = entries
            if name != "setup" or not isinstance(found, dict):
                raise ValueError("its first line holds no setup")
        except ValueError as error:
            raise InputError(f"{self.path}: not a file of measurements: {error}; name another --out") from error
        changed = [key for key in {**found, **setup} if found.get(key) != setup.get(key)]
        if changed:
            listed = "; ".join(f"{key} ({found.get(key)!r} -> {setup.get(key)!r})" for key in changed[:_SHOWN_CHANGES])
            raise InputError(f"{self.path}: cannot resume, the setup changed: {listed}; name another --out")
        self._stream.truncate(len(whole))
        self.entries = entries


def _entry(line: bytes) -> tuple[str, Any]:
    """The name and the value of a line.

    Raises:
        ValueError: it is none that `Measurements.add` writes.
    """
    document = parse_json(line)
    if not isinstance(document, dict) or len(document) != 1:
        raise ValueError("a line is no object with one key")
    ((name, value),) = document.items()
    if (check := _KINDS.get(name)) is None or not check(value):
        raise ValueError(f"a line says {name!r} = {value!r:.80}")
    return name, value


def _times(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(ms, int | float) and not isinstance(ms, bool) and 0 <= ms < math.inf for ms in value.values()
    )


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "setup": lambda value: isinstance(value, dict),
    "layers": lambda value: (
        isinstance(value, dict)
        and set(value) == {"float", "low"}
        and all(entry is None or _times(entry) for entry in value.values())
    ),
    "energy": lambda value: value is None or (_times(value) and set(value) == {"float", "low"}),
    "unmet": lambda value: isinstance(value, dict) and all(isinstance(names, list) for names in value.values()),
    "round": lambda value: bool(value) and _times(value) and all(value.values()),
}
