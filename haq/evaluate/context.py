"""What a measurement depends on beside the policy: the key of the cache.

A cached measurement is what would be measured: beside weights, data and settings the key has the float model's own
score and loss, the source of `haq`'s quantizers and evaluators, that of the user's model, metric and loss, and whatever
changes the last bits of a sum (threads, processor, device, release of torch).
"""

from __future__ import annotations

import hashlib
import inspect
import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).parents[1]
_MEASURING = ("quant", "evaluate", "zoo")
"""The packages of `haq` whose code decides what a policy measures."""


@cache
def code_version() -> str:
    """A hash of the source that measures: an edit of an evaluator is another evaluator."""
    digest = hashlib.sha256()
    for name in _MEASURING:
        for file in sorted((_PACKAGE / name).rglob("*.py")):
            digest.update(str(file.relative_to(_PACKAGE)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def source_digest(objects: Iterable[Any]) -> str:
    """A hash of the files that define these functions or classes; torch's and `haq`'s own are left out.

    What has no source file (a lambda typed into a console, a class of a C extension) counts by its name.
    """
    found: dict[str, bytes] = {}
    for value in objects:
        inner = inspect.unwrap(value)
        definition = inner if inspect.isclass(inner) or inspect.isroutine(inner) else type(inner)
        home = definition.__module__ or ""
        name = f"{home}.{definition.__qualname__}"
        if home.partition(".")[0] in ("torch", "haq"):
            continue
        try:
            found[name] = Path(inspect.getsourcefile(definition) or "").read_bytes()
        except (TypeError, OSError):
            found[name] = b""
    digest = hashlib.sha256()
    for name, content in sorted(found.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def numerics(device: torch.device, *, threads: int | None = None) -> dict[str, Any]:
    """What may change the last bits of a sum on `device`; `threads`: default, this process's."""
    result: dict[str, Any] = {"torch": torch.__version__, "device": device.type}
    if device.type == "cuda":
        # A driver may have no GPU where its workers have.
        name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else "of the workers"
        return result | {"gpu": name, "tf32": torch.backends.cuda.matmul.allow_tf32}
    return result | {
        "threads": threads or torch.get_num_threads(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
