"""Reading files strictly, and writing them so that a reader never sees half a file."""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from haq.values.errors import InputError


def _read_text(path: Path) -> str:
    """The content of a UTF-8 file; a byte order mark, as some editors put it, is left out."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read: not UTF-8 text (byte {error.start}: {error.reason})") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        InputError: missing, unreadable or not TOML; one line with the file.
    """
    try:
        return tomllib.loads(_read_text(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error


def read_json(path: Path) -> Any:
    """Parse a JSON file strictly: no duplicate keys, no NaN or Infinity.

    Raises:
        InputError: missing, unreadable, or not strict JSON; one line with the file.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
        return result

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not a number that can be used here")

    try:
        return json.loads(_read_text(path), object_pairs_hook=unique, parse_constant=refuse)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be written: {reason}; free the place or choose another with --out") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
