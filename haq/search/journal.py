"""The trial journal: `trials.jsonl`, append-only, one line a trial, flushed as it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from haq.edges.documents import LARGEST_JOURNAL, finite, lock, open_journal, parse_json, read_bytes
from haq.values.errors import InputError
from haq.values.trial import Trial

_SHOWN_CHANGES = 5


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


def holds_trials(path: Path) -> bool:
    """Whether there is a journal at `path` with at least one trial in it."""
    return path.exists() and read_bytes(path, limit=LARGEST_JOURNAL).count(b"\n") > 1


def setup_of(path: Path) -> dict[str, Any]:
    """The setup in a journal's first line; empty where there is no whole one."""
    try:
        setup = parse_json(read_bytes(path, limit=LARGEST_JOURNAL).partition(b"\n")[0])["setup"]
    except (ValueError, KeyError, TypeError):
        return {}
    return setup if isinstance(setup, dict) else {}


def stored_trials(path: Path) -> list[Trial]:
    """The trials in a journal, to read only; a last line that a kill tore is left out.

    Raises:
        InputError: missing, unreadable or damaged.
    """
    try:
        raw = read_bytes(path, limit=LARGEST_JOURNAL)
    except InputError as error:
        raise InputError(f"{error}; name the folder of a run") from error
    return _parse(path, raw[: raw.rfind(b"\n") + 1], setup_of(path))


class Journal:
    """The trials of one run, on disk and in memory. Only one process at a time has a journal open.

    The first line holds the setup; each further line one trial. A last line without its newline was torn by a kill:
    it is cut off when the run resumes. Close it, or use it in a `with` block.

    Trials are written as they are measured, which is not the order of their numbers when several are at a time.
    """

    def __init__(self, path: Path, stream: BinaryIO, trials: list[Trial]) -> None:
        self._trials = list(trials)
        self._path, self._stream = path, stream

    @property
    def trials(self) -> list[Trial]:
        """All trials, by number."""
        return sorted(self._trials, key=lambda trial: trial.number)

    @classmethod
    def open(cls, path: Path, setup: Mapping[str, Any], *, resume: bool) -> Journal:
        """`create`, or with `resume` go on with the journal that is there, if any."""
        return cls.resume(path, setup) if resume and path.exists() else cls.create(path, setup)

    @classmethod
    def create(cls, path: Path, setup: Mapping[str, Any]) -> Journal:
        """Start a new journal. One that holds no trial yet is replaced.

        Raises:
            InputError: `path` holds trials, is open in another process, or cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be made: {error.strerror}; name another --out") from error
        journal = cls(path, _locked(path), [])
        if holds_trials(path):
            journal.close()
            raise InputError(f"{path}: a run already exists; add --resume to go on, or name another --out")
        journal._stream.truncate(0)
        journal._write({"schema_version": 1, "setup": finite(setup)})
        return journal

    @classmethod
    def resume(cls, path: Path, setup: Mapping[str, Any]) -> Journal:
        """Open a journal to go on with it.

        Raises:
            InputError: not there, open in another process, damaged before its last line, or of another setup; says what
                changed.
        """
        try:
            raw = read_bytes(path, limit=LARGEST_JOURNAL)
        except InputError as error:
            raise InputError(f"{error}; start without --resume") from error
        whole = raw[: raw.rfind(b"\n") + 1]
        if whole.count(b"\n") <= 1:
            return cls.create(path, setup)
        trials = _parse(path, whole, setup)
        stream = _locked(path)
        stream.truncate(len(whole))
        return cls(path, stream, trials)

    def append(self, trial: Trial) -> None:
        """Add a trial; it is on disk when this returns.

        Raises:
            InputError: the disk does not take it.
        """
        self._write(finite(trial.to_doc()))
        self._trials.append(trial)

    def _write(self, document: Mapping[str, Any]) -> None:
        line = (json.dumps(document, default=str) + "\n").encode()
        whole = os.fstat(self._stream.fileno()).st_size
        try:
            while line:  # a disk that fills up takes a part
                line = line[self._stream.write(line) :]
            os.fsync(self._stream.fileno())
        except OSError as error:
            with suppress(OSError):
                self._stream.truncate(whole)
            raise InputError(f"{self._path}: cannot be written: {error.strerror}; free space and --resume") from error

    def close(self) -> None:
        """Release it."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _locked(path: Path) -> BinaryIO:
    """The file, unbuffered, for this process alone where the system can tell."""
    try:
        stream = os.fdopen(open_journal(path), "ab", buffering=0)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; name another --out") from error
    if not lock(stream):
        stream.close()
        raise InputError(f"{path}: another haq is writing this run; wait for it or name another --out")
    return stream


def _parse(path: Path, content: bytes, setup: Mapping[str, Any]) -> list[Trial]:
    documents = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            documents.append(parse_json(line))
        except ValueError as error:
            raise InputError(f"{path}:{number}: not a journal line: {error}; start over in another --out") from error
    found = documents[0].get("setup") if documents and isinstance(documents[0], dict) else None
    try:
        if not isinstance(found, dict):
            raise ValueError("the first line holds no setup")
        changed = _changes(found, json.loads(json.dumps(finite(setup), default=str)))
        trials = [Trial.from_doc(document) for document in documents[1:]]
    except ValueError as error:
        raise InputError(f"{path}: not a journal of trials: {error}; start over in another --out") from error
    if changed:
        listed = "; ".join(changed[:_SHOWN_CHANGES])
        raise InputError(f"{path}: cannot resume, the setup changed: {listed}; undo that or name another --out")
    if len({trial.number for trial in trials}) != len(trials):
        raise InputError(f"{path}: trials appear twice; start over in another --out")
    return trials
