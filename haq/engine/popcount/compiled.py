"""The C of `kernels.c`, compiled once for each path of this processor, and loaded through ctypes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from haq.values.errors import InputError

SOURCE = Path(__file__).with_name("kernels.c")
_X86: dict[str, tuple[str, ...]] = {
    "portable": (),
    "popcnt": ("-mpopcnt",),
    "avx2": ("-mavx2", "-mpopcnt", "-DHAQ_AVX2"),
}


def compiler() -> str | None:
    """The C compiler: `CC` of the environment, else `cc`, `gcc` or `clang`; None where there is none."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((found for name in names if (found := shutil.which(name))), None)


@cache
def paths() -> tuple[str, ...]:
    """Names of the paths that this processor runs, the plainest first.

    Raises:
        InputError: no compiler, or it fails.
    """
    supports = load("portable").haq_supports
    return tuple(name for index, name in enumerate(_X86) if supports(index))


@cache
def load(path: str) -> ctypes.CDLL:
    """Compiles and loads one path. The file is deleted at once: nothing is left behind, nothing of others is loaded.

    Raises:
        InputError: an unknown path, no compiler, or a compiler that fails (its first line).
    """
    if path not in _X86:
        raise InputError(f"path {path!r}: known are {', '.join(_X86)}")
    found = compiler()
    if found is None:
        raise InputError("no C compiler for the popcount kernels: install gcc or clang, or set CC")
    with tempfile.TemporaryDirectory(prefix="haq-popcount-") as folder:
        target = Path(folder) / f"{path}.so"
        command = [found, "-std=gnu99", "-O3", "-shared", "-fPIC", *_X86[path], str(SOURCE), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            raise InputError(f"{found} failed on the popcount kernels: {first}")
        return ctypes.CDLL(str(target))
