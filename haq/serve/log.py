"""What became of a service's ranges: a file that is only appended to, and from which a service resumes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from haq.adaptive.family import DOCUMENT
from haq.edges.documents import lock, open_journal
from haq.values.errors import InputError


class Log:
    """`serving.jsonl` in a service's folder: one event a line, on the disk before it takes effect.

    Attributes:
        entries: all of them, oldest first; a line that a kill left half-written is passed over.
    """

    def __init__(self, folder: Path) -> None:
        """Opens it, for this process alone.

        Raises:
            InputError: another service has it, or it cannot be written.
        """
        path = folder / "serving.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = os.fdopen(open_journal(path), "r+b", buffering=0)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}; choose another --state") from error
        if not lock(self._file):
            raise InputError(f"{path}: another haq serve keeps its state there; stop it, or choose another --state")
        content = self._file.read()
        self.entries = [entry for line in content.splitlines() if (entry := _entry(line)) is not None]
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")

    def append(self, event: str, **details: Any) -> None:
        """Add an event."""
        entry = {"time": round(time.time(), 3), "event": event, **details}
        self._file.write(json.dumps(entry).encode() + b"\n")
        os.fsync(self._file.fileno())
        self.entries.append(entry)

    def last_version(self, family: Path) -> tuple[int, str | None]:
        """Number and folder name of what was in use last; 0 and `None` for the family's own ranges."""
        print_ = fingerprint(family)
        for entry in reversed(self.entries):
            if entry.get("event") in ("swap", "rollback") and entry.get("family") == print_:
                return int(entry["version"]), entry["folder"]
        return 0, None

    @property
    def largest_version(self) -> int:
        """Of all that there ever were."""
        return max((int(entry.get("version", 0)) for entry in self.entries), default=0)


def fingerprint(family: Path) -> str:
    """Of the family whose ranges an entry is about."""
    return hashlib.sha256((family / DOCUMENT).read_bytes()).hexdigest()[:16]


def _entry(line: bytes) -> Mapping[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
