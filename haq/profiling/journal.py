"""What has been measured so far, on disk: a killed `haq profile` goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haq.edges.documents import finite
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
        if resume:
            self._read(document)
        elif path.exists():
            raise InputError(f"{path}: measurements are there already; add --resume to go on, or name another --out")
        else:
            self._open("wb")
            self.add("setup", document)

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

    def _open(self, mode: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open(mode)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}; name another --out") from error

    def _read(self, setup: Mapping[str, Any]) -> None:
        try:
            raw = self.path.read_bytes()
        except OSError as error:
            raise InputError(f"{self.path}: nothing to resume ({error.strerror}); start without --resume") from error
        whole = raw[: raw.rfind(b"\n") + 1]
        try:
            self.entries = [next(iter(json.loads(line).items())) for line in whole.splitlines()]
            name, found = self.entries[0]
            changed = [key for key in {**found, **setup} if found.get(key) != setup.get(key)]
        except (ValueError, StopIteration, IndexError, AttributeError) as error:
            raise InputError(f"{self.path}: not a file of measurements; name another --out") from error
        if name != "setup":
            raise InputError(f"{self.path}: not a file of measurements; name another --out")
        if changed:
            listed = "; ".join(f"{key} ({found.get(key)!r} -> {setup.get(key)!r})" for key in changed[:_SHOWN_CHANGES])
            raise InputError(f"{self.path}: cannot resume, the setup changed: {listed}; name another --out")
        self._open("r+b")
        self._stream.truncate(len(whole))
        self._stream.seek(len(whole))
