"""Measurements kept between runs, found by what they depend on. See docs/distributed.md for what is in the key."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq.edges.documents import parse_json, read_bytes
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Measurement

if TYPE_CHECKING:
    from haq.search.loop import Executor

CACHE_ENV = "HAQ_CACHE_DIR"
_LAYOUT = "measurements-1"
"""The folder in a cache that is ours; its number changes with the layout of entries."""
_CONTEXT = "context.json"


def cache_folder(configured: Path | None = None) -> Path:
    """Where measurements are kept: `$HAQ_CACHE_DIR`, else `configured`, else the user's cache directory."""
    if named := os.environ.get(CACHE_ENV):
        return Path(named)
    if configured is not None:
        return configured
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "haq" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "haq"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "haq"


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds: entries (one per measurement), contexts (setups they belong to) and bytes on disk."""

    folder: Path
    entries: int
    contexts: int
    bytes: int


class MeasurementCache:
    """Measurements of one context: everything but the policy that a measurement depends on.

    One small file per measurement, written under another name and then renamed, so that any number of processes may
    share the folder. An entry counts only if its checksum, context and policy are the expected ones; any other is a
    miss. A cache that cannot be written never stops a search: `on_error` hears of it once.

    Args:
        folder: of all contexts; see `cache_folder`.
        context: a JSON value.
        on_error: told why entries cannot be written.
    """

    def __init__(
        self, folder: Path, context: Mapping[str, Any], *, on_error: Callable[[str], None] = lambda message: None
    ) -> None:
        self._context = _digest(context)
        self._document = dict(context)
        self._folder = folder / _LAYOUT / self._context[:32]
        self._on_error: Callable[[str], None] | None = on_error

    def get(self, policy: Policy) -> Measurement | None:
        """The measurement of `policy`, `None` if there is none that can be trusted."""
        try:
            entry = parse_json(read_bytes(self._path(policy)))
            check = entry.pop("sha256")
            if check != _digest(entry) or entry["context"] != self._context or entry["policy"] != policy.to_doc():
                return None
            return Measurement.from_doc(entry["measurement"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, policy: Policy, measurement: Measurement) -> None:
        """Keep a measurement. Failed ones are not kept: the next run may have more memory or time."""
        figures = (measurement.score, measurement.seconds, *measurement.details.values())
        if not measurement.ok or not all(math.isfinite(figure) for figure in figures):
            return
        entry = {"context": self._context, "policy": policy.to_doc(), "measurement": measurement.to_doc()}
        try:
            if not (self._folder / _CONTEXT).exists():
                _replace(self._folder / _CONTEXT, self._document)
            _replace(self._path(policy), {**entry, "sha256": _digest(entry)})
        except OSError as error:
            self._complain(error)

    def _path(self, policy: Policy) -> Path:
        return self._folder / f"{policy.key}.json"

    def _complain(self, error: OSError) -> None:
        if self._on_error is not None:
            self._on_error(
                f"cache: {self._folder.parent}: cannot be written: {error.strerror or error}; measurements are not kept"
                f" (another place: ${CACHE_ENV}, none: --no-cache)"
            )
            self._on_error = None


def _replace(path: Path, document: Any) -> None:
    """Write a JSON file under another name, then rename it. Not synced: a torn entry fails its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(document, stream, default=str)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def cache_info(folder: Path) -> CacheInfo:
    """Count what is in the cache at `folder`; a folder that is not there holds nothing."""
    files = [path for path in (folder / _LAYOUT).rglob("*") if path.is_file()]
    entries = [path for path in files if path.suffix == ".json" and path.name != _CONTEXT]
    sizes = []
    for path in files:
        with suppress(OSError):  # another process may clear it now
            sizes.append(path.stat().st_size)
    return CacheInfo(folder, len(entries), len({path.parent for path in entries}), sum(sizes))


def clear_cache(folder: Path) -> CacheInfo:
    """Remove what `haq` wrote into the cache at `folder`, nothing else; says what was there.

    Raises:
        InputError: it cannot be removed.
    """
    info = cache_info(folder)
    try:
        shutil.rmtree(folder / _LAYOUT)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"{folder}: cannot be cleared: {error.strerror}; remove it by hand") from error
    return info


class CachingExecutor:
    """Answers what the cache knows at once, and has the rest evaluated and kept.

    Attributes:
        hits: how many measurements came from the cache.
    """

    def __init__(self, executor: Executor, cache: MeasurementCache) -> None:
        self.hits = 0
        self._executor, self._cache = executor, cache
        self._known: deque[tuple[Policy, Measurement]] = deque()

    @property
    def capacity(self) -> int:
        return self._executor.capacity

    def submit(self, policy: Policy) -> None:
        """Look `policy` up, and evaluate it if it is not there."""
        measurement = self._cache.get(policy)
        if measurement is None:
            self._executor.submit(policy)
        else:
            self.hits += 1
            self._known.append((policy, measurement))

    def next_completed(self) -> tuple[Policy, Measurement]:
        """A known measurement while there is one, else the next of the executor's."""
        if self._known:
            return self._known.popleft()
        return self._keep(*self._executor.next_completed())

    def finished(self) -> list[tuple[Policy, Measurement]]:
        """See `Executor.finished`."""
        return [*self._known, *(self._keep(*done) for done in self._executor.finished())]

    def close(self) -> None:
        """See `Executor.close`."""
        self._executor.close()

    def _keep(self, policy: Policy, measurement: Measurement) -> tuple[Policy, Measurement]:
        self._cache.put(policy, measurement)
        return policy, measurement
