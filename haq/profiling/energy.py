"""Energy by RAPL: the counters of the processor's packages, where the system lets them be read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
_SECONDS = 1.0


def read_packages(root: Path = POWERCAP) -> dict[str, tuple[int, int]]:
    """Package -> its counter and where that wraps, both in microjoules; empty where nothing can be read."""
    found = {}
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
            counter = int((folder / "energy_uj").read_text())
            largest = int((folder / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            continue
        if name.startswith("package"):
            found[folder.name] = (counter, largest)
    return found


def energy_mj(run: Callable[[], Any], *, root: Path = POWERCAP, seconds: float = _SECONDS) -> float | None:
    """Millijoules of all packages for one `run`, the mean over `seconds`; `None` without counters.

    It is what the whole machine takes meanwhile, idle power included.
    """
    before = read_packages(root)
    if not before:
        return None
    runs, start = 0, time.perf_counter()
    while runs == 0 or time.perf_counter() - start < seconds:
        run()
        runs += 1
    after = read_packages(root)
    if set(after) != set(before):
        return None
    used = sum((after[name][0] - counter) % (largest + 1) for name, (counter, largest) in before.items())
    return used / 1e3 / runs
