"""Starts a group of processes on the loopback address, runs a function in each, and hands back what it returned."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _member(rank: int, function: Callable[[int, int], Any], world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    patience = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=patience)
    try:
        torch.save(function(rank, world), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_group(function: Callable[[int, int], Any], world: int, folder: Path) -> list[Any]:
    """What `function(rank, world)` returned on every rank."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_member, args=(function, world, str(folder)), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
