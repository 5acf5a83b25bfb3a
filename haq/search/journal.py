"""The trial journal: `trials.jsonl`, append-only, one line a trial, flushed as it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haq.errors import InputError
from haq.files import finite
from haq.types import Trial


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flatten(entry, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = _flatten(old), _flatten(new)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key} ({before.get(key)!r} -> {after.get(key)!r})" for key in keys]


class Journal:
    """The trials of one run, on disk and in memory.

    The first line holds the setup; each further line one trial. A last line without its newline was torn by a kill:
    it is cut off when the run resumes.
    """

    def __init__(self, path: Path, trials: list[Trial]) -> None:
        self.path = path
        self.trials = trials

    @classmethod
    def create(cls, path: Path, setup: Mapping[str, Any]) -> Journal:
        """Start a new journal.

        Raises:
            InputError: `path` exists, or cannot be written.
        """
        line = json.dumps({"schema_version": 1, "setup": finite(setup)}, default=str) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as stream:
                stream.write(line)
        except FileExistsError as error:
            raise InputError(f"{path}: a run is there already; add --resume to go on, or name another --out") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}; name another --out") from error
        return cls(path, [])

    @classmethod
    def resume(cls, path: Path, setup: Mapping[str, Any]) -> Journal:
        """Open a journal to go on with it.

        Raises:
            InputError: not there, damaged before its last line, or of another setup; says what changed.
        """
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}; start without --resume") from error
        whole = raw[: raw.rfind(b"\n") + 1]
        if not whole:
            path.unlink()
            return cls.create(path, setup)
        documents = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                documents.append(json.loads(line))
            except ValueError as error:
                raise InputError(
                    f"{path}:{number}: not a journal line: {error}; start anew in another --out"
                ) from error
        normal = json.loads(json.dumps(finite(setup), default=str))
        changed = _changes(documents[0].get("setup", {}), normal)
        if changed:
            listed = "; ".join(changed[:5])
            raise InputError(f"{path}: cannot resume, the setup changed: {listed}; undo that or name another --out")
        try:
            trials = [Trial.from_doc(document) for document in documents[1:]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: not a journal of trials: {error!r}; start anew in another --out") from error
        if len(whole) != len(raw):
            os.truncate(path, len(whole))
        return cls(path, trials)

    def append(self, trial: Trial) -> None:
        """Add a trial; it is on disk when this returns.

        Raises:
            InputError: the disk does not take it.
        """
        line = json.dumps(finite(trial.to_doc())) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}; free space and --resume") from error
        self.trials.append(trial)
