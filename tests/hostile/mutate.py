"""Damaged and hostile variants of a good file, the same for the same seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 10**30, -(10**30), 10**400, 0.5, -0.5, 1e308, 1e-320, "", " ", "0", "int4",
    "w4a8", "fast", "../../etc/passwd", "=cmd|' /C calc'!A0", "a\nb\x1b[31m\x07", "é" * 40, "x" * 5000, "os:system",
    [], {}, [[]], [1, 2], [None], {"a": 1}, {"": None}, [{}], "NaN", "1e999", "\ud800", "\x00",
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    yield path
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from places(entry, (*path, key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from places(entry, (*path, index))


def damaged_document(document: Any, rng: random.Random) -> Any:
    """The document with one to three values replaced, removed, doubled, or put under another key."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(list(places(document)))
        if not path:
            if rng.random() < 0.1:
                return rng.choice(HOSTILE)
            continue
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        action, last = rng.random(), path[-1]
        if action < 0.6:
            parent[last] = copy.deepcopy(rng.choice(HOSTILE))
        elif action < 0.75:
            del parent[last]
        elif action < 0.85 and isinstance(parent, dict):
            parent[rng.choice(("", "x", "schema_version", "é" * 9, "a.b", "x" * 3000))] = parent.pop(last)
        elif isinstance(parent, list):
            parent.extend(copy.deepcopy(parent[: rng.choice((1, 3))]))
        else:
            parent[last] = copy.deepcopy(document)
    return document


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """The content cut, with bytes changed, doubled, taken out or put in, or something else altogether."""
    action = rng.random()
    if action < 0.2:
        return content[: rng.randrange(len(content) + 1)]
    if action < 0.25:
        return rng.choice(
            (b"", b"\x00" * 64, b"\xff\xfe" + content, b"[" * 20000, b"{" * 20000, b'{"a":' * 3000, b"PK\x03\x04")
        )
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.random()
        if kind < 0.4 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif kind < 0.6:
            del changed[at : at + rng.choice((1, 4, 40))]
        elif kind < 0.8:
            changed[at:at] = rng.choice((b"\n", b'"', b"9" * 400, b",", b"\x1b[31m", b"nan", b"-", b"\x00", b"1e999"))
        else:
            changed[at:at] = bytes(changed[at : at + 30])
    return bytes(changed)


def json_variants(document: Any) -> Callable[[random.Random], bytes]:
    """Variants of a JSON file: by value three times in four, by byte else."""
    content = json.dumps(document).encode()

    def variant(rng: random.Random) -> bytes:
        if rng.random() < 0.75:
            return json.dumps(damaged_document(document, rng)).encode()
        return damaged_bytes(content, rng)

    return variant


def line_variants(content: bytes) -> Callable[[random.Random], bytes]:
    """Variants of a file of JSON lines."""
    lines = content.splitlines(keepends=True)

    def variant(rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return damaged_bytes(content, rng)
        index = rng.randrange(len(lines))
        line = json.dumps(damaged_document(json.loads(lines[index]), rng)).encode() + b"\n"
        return b"".join((*lines[:index], line, *lines[index + 1 :]))

    return variant


def byte_variants(content: bytes) -> Callable[[random.Random], bytes]:
    """Variants by byte alone."""
    return lambda rng: damaged_bytes(content, rng)
