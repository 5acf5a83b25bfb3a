"""Names that a room hands on without importing what they need: reading an experiment file must not import torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy_names(
    room: str, homes: Mapping[str, tuple[str, ...]], *, rooms: tuple[str, ...] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a room's `__init__.py` (PEP 562).

    Args:
        room: the package, `__name__`.
        homes: module -> the names that it gives to the room.
        rooms: packages inside it that are names of their own.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home:
            if name in rooms:
                return import_module(f"{room}.{name}")
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        value = getattr(import_module(home[name]), name)
        setattr(sys.modules[room], name, value)
        return value

    return get, lambda: sorted({*home, *rooms})


def callable_room(room: str, home: str, name: str) -> None:
    """Let a room be called like the function `name` of the module `home`: `haq.search(model, ...)`.

    The room stays the package that it is; the function is imported when it is first called.
    """

    class CallableRoom(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(import_module(home), name)(*args, **kwargs)

    module = sys.modules[room]
    module.__class__ = CallableRoom
