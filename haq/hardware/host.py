"""The machine that this runs on, and whether a measured profile is of it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from haq.hardware.kinds.table import network_digest
from haq.hardware.profile import HardwareProfile
from haq.hardware.sections import Measured
from haq.values.network import Network

_CAPABILITIES = ("avx2", "avx512bw", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")
"""Flags of a processor that decide which integer kernels run."""


def cpu_model() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Hardware", "Model"))]
    return next((name for name in names if name), platform.processor() or platform.machine() or "unknown")


def cpu_capability() -> str:
    """What integer kernels can use here, e.g. `x86_64 avx2` or `x86_64 avx2 avx_vnni`; of others the machine alone."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = [line.partition(":")[2] for line in text.splitlines() if line.startswith(("flags", "Features"))]
    flags = set(lines[0].split()) if lines else set()
    return " ".join([platform.machine(), *(flag for flag in _CAPABILITIES if flag in flags)])


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def profile_warnings(profile: HardwareProfile, network: Network) -> tuple[str, ...]:
    """Why a measured profile may not hold here: another machine, runtime or model. Empty: nothing speaks against it."""
    measured = profile.measured
    if measured is None:
        return ()
    warnings = _host_warnings(measured, name=profile.name)
    if measured.package == "onnxruntime" and not measured.exact:
        warnings += (
            f"profile {profile.name} was measured with kernels that may saturate: what is exported now is exact, and "
            "slower on x86 processors without VNNI; measure again with haq profile",
        )
    if network_digest(network) != measured.network:
        warnings += (f"profile {profile.name} was measured for another model: its layers' timings are not valid here",)
    return warnings


def _host_warnings(measured: Measured, *, name: str) -> tuple[str, ...]:
    differences: list[str] = []
    if measured.command:  # the device is behind the user's command, wherever that runs
        return ()
    if cpu_model() != measured.cpu:
        differences.append(f"this processor is {cpu_model()}, not {measured.cpu}")
    if measured.capability and cpu_capability() != measured.capability:
        differences.append(f"this processor has {cpu_capability()}, not {measured.capability}")
    if measured.package:
        try:
            here = version(measured.package)
        except PackageNotFoundError:
            here = "not installed"
        if here != measured.package_version:
            differences.append(f"{measured.package} is {here} here, not {measured.package_version}")
    if cores() < measured.threads:
        differences.append(f"this process may use {cores()} processors, fewer than {measured.threads} threads")
    return tuple(
        f"profile {name} was measured elsewhere: {text}; its timings are not valid here; measure yours with haq profile"
        for text in differences
    )
