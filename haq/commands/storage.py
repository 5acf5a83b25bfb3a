"""`haq cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from haq.commands.options import (
    AsJson,
)
from haq.commands.terminal import (
    print_json,
    print_out,
)

CacheFolder = Annotated[Path | None, typer.Option(help="Cache folder; default: $HAQ_CACHE_DIR, else the user's.")]


def cache_show(folder: CacheFolder = None, as_json: AsJson = False) -> None:
    """Say where measurements are kept, how many, and how much room they take."""
    from haq.execute import cache_folder, cache_info

    info = cache_info(folder or cache_folder())
    if as_json:
        print_json({**vars(info), "folder": str(info.folder)})
        return
    print_out(f"{info.folder}: {info.entries} measurements of {info.contexts} setups, {info.bytes:,} bytes")


def cache_clear(folder: CacheFolder = None) -> None:
    """Remove all measurements that are kept."""
    from haq.execute import cache_folder, clear_cache

    info = clear_cache(folder or cache_folder())
    print_out(f"{info.folder}: removed {info.entries} measurements")
