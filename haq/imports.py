"""Loading what the user names as `module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from haq.errors import InputError


def load_reference(reference: str, *, key: str, folder: Path) -> Callable[..., Any]:
    """The object that `module:function` names, looked for in `folder`, the working directory and what is installed.

    Args:
        reference: `package.module:function`.
        key: the experiment's key, for the message.
        folder: of the experiment file.

    Raises:
        InputError: no such module or function, the module fails when imported, or it is not callable.
    """
    module_name, _, attribute = reference.partition(":")
    for place in (str(Path.cwd()), str(folder.resolve())):
        if place not in sys.path:
            sys.path.insert(0, place)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{key} = {reference!r}: {error}; put the module beside the experiment file or in the working directory"
        ) from error
    except Exception as error:
        raise InputError(f"{key} = {reference!r}: importing it failed: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"{key} = {reference!r}: module {module_name} has no {attribute!r}; check its spelling")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{key} = {reference!r}: is no function but {type(found).__name__}; name a callable")
    return found  # type: ignore[no-any-return]


def call_reference(reference: str, options: Mapping[str, Any], *, key: str, folder: Path) -> Any:
    """Call what `reference` names with `options`.

    Raises:
        InputError: it is not there, or it fails; names the key and the user's own error.
    """
    function = load_reference(reference, key=key, folder=folder)
    try:
        return function(**options)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{key} = {reference!r} failed: {type(error).__name__}: {error}") from error
