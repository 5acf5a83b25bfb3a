"""Reading files strictly and within bounds, and writing them so that a reader never sees half a file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from haq.values.errors import InputError

LARGEST_FILE = 256 * 2**20
"""Bytes of a document, a table or an image: what is larger is not read."""
LARGEST_JOURNAL = 2**30
"""Bytes of a journal, which grows with its run."""
_LEFTOVER = re.compile(r"\.haq-[0-9a-f]{16}\.tmp")
_CHECKSUM = "sha256"
_DEEPEST = 64
_TOO_DEEP = f"nested more than {_DEEPEST} deep"
_NOT_REGULAR = "is no regular file; name a file that lies on a disk"
_QUIET = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def read_bytes(path: Path, *, limit: int = LARGEST_FILE) -> bytes:
    """The content of a regular file of at most `limit` bytes: no pipe, which may never end, and no device.

    Raises:
        InputError: missing, unreadable, no regular file, or larger.
    """
    try:
        # Without waiting: opening a pipe would hang until somebody writes to it.
        with os.fdopen(os.open(path, os.O_RDONLY | _QUIET), "rb") as stream:
            _check_regular(path, os.fstat(stream.fileno()), limit)
            content = stream.read(limit + 1)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from error
    if len(content) > limit:  # it grew meanwhile, or the system knows no size
        raise InputError(f"{path}: cannot be read: {_too_large(limit)}")
    return content


def check_file(path: Path, *, limit: int | None = LARGEST_FILE) -> None:
    """Raise unless a library may be given `path` to read: a regular file of at most `limit` bytes (`None`: any size).

    Raises:
        InputError: missing, no regular file, or larger.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    _check_regular(path, found, limit)


def _check_regular(path: Path, found: os.stat_result, limit: int | None) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path}: cannot be read: is a folder; name a file")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: cannot be read: {_NOT_REGULAR}")
    if limit is not None and found.st_size > limit:
        raise InputError(f"{path}: cannot be read: {_too_large(limit)}")


def _too_large(limit: int) -> str:
    return f"larger than {limit // 2**20} MiB, the most that is read"


def read_text(path: Path, *, limit: int = LARGEST_FILE) -> str:
    """The content of a UTF-8 file; a byte order mark, as some editors put it, is left out.

    Raises:
        InputError: see `read_bytes`; or it is not UTF-8.
    """
    try:
        return read_bytes(path, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read: not UTF-8 text (byte {error.start}: {error.reason})") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        InputError: missing, unreadable or not TOML; one line with the file.
    """
    try:
        document: dict[str, Any] = _shallow(tomllib.loads(read_text(path)))
        return document
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error


def parse_json(text: str | bytes) -> Any:
    """Parse JSON strictly: no duplicate keys, no NaN or Infinity.

    Raises:
        ValueError: it is not that; also where it is nested too deeply to be read.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
        return result

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not a number that can be used here")

    try:
        return _shallow(json.loads(text, object_pairs_hook=unique, parse_constant=refuse))
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error


def _shallow(document: Any) -> Any:
    """`document`, if those who read it can walk through it by recursion."""
    level = [document]
    for _ in range(_DEEPEST):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
            if isinstance(child, dict | list)
        ]
        if not level:
            return document
    raise ValueError(_TOO_DEEP)


def read_json(path: Path) -> Any:
    """Parse a JSON file strictly: no duplicate keys, no NaN or Infinity.

    Raises:
        InputError: missing, unreadable, or not strict JSON; one line with the file.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically: a reader sees the old content or the new, never a part.

    Raises:
        InputError: the folder or disk does not take the file; the message names it and the reason.
    """
    # The name of a file need not be UTF-8: what it stands for in the text is escaped, in JSON validly.
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """`write_text` for bytes."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = _new_file_beside(path)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be written: {reason}; free the place or choose another with --out") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _new_file_beside(path: Path) -> tuple[int, Path]:
    """A file that was not there, with a name that nobody can guess: a link that somebody put there is never followed.

    Unlike those of `tempfile`, it gets the permissions that the user gives to new files.
    """
    temporary = path.with_name(f".haq-{secrets.token_hex(8)}.tmp")
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666), temporary


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder and the folders in it; nobody may be writing there."""
    for path in folder.rglob(".haq-*.tmp"):
        if _LEFTOVER.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def open_journal(path: Path) -> int:
    """A descriptor to read and append to `path`, which is made if it is not there; a link in its place is refused.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _QUIET | _NO_LINK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, _NOT_REGULAR)
    return descriptor


def finite(value: Any) -> Any:
    """`value` with NaN and infinities replaced by `None`, as strict JSON wants it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [finite(entry) for entry in value]
    return value


def to_json(document: Any, *, ascii_only: bool = False) -> str:
    """`document` as strict JSON text with a final newline; paths and the like become strings."""
    return json.dumps(finite(document), indent=2, ensure_ascii=ascii_only, allow_nan=False, default=str) + "\n"


def write_json(path: Path, document: Any) -> None:
    """Write `document` to `path` as JSON, atomically.

    Raises:
        InputError: see `write_text`.
    """
    write_text(path, to_json(document))


def lock(stream: BinaryIO) -> bool:
    """Whether an open file is this process's alone from now on, as far as the system can tell."""
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass  # Windows, or a network drive without locks
    return True


def content_digest(document: Any) -> str:
    """A hash of a JSON value, whatever the order of its keys."""
    plain = json.loads(to_json(document))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write_checked(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum of its content, atomically.

    Raises:
        InputError: see `write_text`.
    """
    write_json(path, {**document, _CHECKSUM: content_digest(document)})


def read_checked(path: Path) -> dict[str, Any]:
    """The object that `write_checked` wrote: a file that was edited or damaged since is not believed.

    Raises:
        InputError: unreadable, no object, or its checksum is not that of its content.
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a JSON object; delete it to recompute")
    found = document.pop(_CHECKSUM, None)
    if found != content_digest(document):
        what = "has no checksum" if found is None else "its content is not what was written (wrong checksum)"
        raise InputError(f"{path}: {what}; delete it to recompute")
    return document
