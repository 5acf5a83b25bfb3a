"""A cluster of our own: only this machine reaches it, and only with its token."""

import os
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.ray]

from haq.execute.ray_cluster import RayCluster, import_ray  # noqa: E402

LISTENS = "0A"


def _local_addresses(pids: set[int]) -> list[str]:
    """The addresses (as the kernel writes them) on which these processes listen."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(entry)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and fields[9] in inodes:
                found.append(fields[1].partition(":")[0])
    return found


def _children(root: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {root}
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= new
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
def test_it_listens_on_the_loopback_address_and_asks_for_its_token(monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    cluster = RayCluster(import_ray(), None, cpus=1)
    try:

        @ray.remote
        def mode() -> tuple[str, str]:
            return os.environ.get("RAY_AUTH_MODE", ""), os.environ.get("RAY_AUTH_TOKEN", "")

        assert ray.get(mode.remote()) == ("token", os.environ["RAY_AUTH_TOKEN"])
        addresses = _local_addresses(_children(os.getpid()))
        assert len(addresses) >= 3
        assert not [one for one in addresses if "7F000001"[::-1] not in one[::-1] and "0100007F" not in one]
    finally:
        cluster.close()
    left = {key: value for key, value in os.environ.items() if key.startswith("RAY_AUTH")}
    assert left == {key: value for key, value in before.items() if key.startswith("RAY_AUTH")}
