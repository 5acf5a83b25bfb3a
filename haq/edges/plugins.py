"""What installed packages add: entry points of the groups `haq.strategies`, `haq.cost_models` and `haq.exporters`."""

from __future__ import annotations

from collections.abc import MutableMapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from haq.edges.user_code import describe
from haq.values.errors import InputError

T = TypeVar("T")


def add_plugin(registry: MutableMapping[str, T], name: str, *, group: str, wanted: type[Any]) -> None:
    """Put the entry point `name` of `group` into `registry`, if a package has one and `registry` has not that name.

    Nothing is imported but the one that is asked for by name.

    Args:
        registry: name -> class, or object.
        name: that was asked for.
        group: of the entry points.
        wanted: what it must be: an instance of it, or a subclass.

    Raises:
        InputError: the package fails when imported, or its entry point is something else.
    """
    if name in registry:
        return
    for point in entry_points(group=group, name=name):
        label = f"{group}: {name} = {point.value!r}"
        try:
            found = point.load()
        except (Exception, SystemExit) as error:
            raise InputError(f"{label}: importing it failed: {describe(error)}") from error
        fits = issubclass(found, wanted) if isinstance(found, type) else isinstance(found, wanted)
        if not fits:
            raise InputError(f"{label}: expected a {wanted.__name__}, got {found!r:.80}")
        registry[name] = found
        return
