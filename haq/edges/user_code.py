"""Loading what the user names as `module:function`, and calling it so that its failures are the user's to read."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from haq.values.errors import InfeasibleError, InputError


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
    label = f"{key} = {reference!r}"
    module = _import(module_name, label=label, folder=folder)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            place = getattr(module, "__file__", None) or "a built-in module"
            raise InputError(f"{label}: module {module_name} ({place}) has no {attribute!r}; check its spelling")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{label}: is not a function but {type(found).__name__}; name a callable")
    return found  # type: ignore[no-any-return]


def _import(name: str, *, label: str, folder: Path) -> ModuleType:
    places = [str(folder.resolve()), str(Path.cwd())]
    sys.path[:0] = [place for place in dict.fromkeys(places) if place not in sys.path]
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{label}: {error}; put the module beside the experiment file or in the working directory"
        ) from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{label}: importing it failed: {describe(error)}") from error
    ours = PathFinder.find_spec(name.partition(".")[0], places)
    loaded = sys.modules[name.partition(".")[0]]
    if ours is not None and ours.origin is not None and not _same_file(ours.origin, getattr(loaded, "__file__", None)):
        raise InputError(f"{label}: {ours.origin} has the name of another module that is in use; rename it")
    return module


def _same_file(origin: str, loaded: str | None) -> bool:
    return loaded is not None and Path(origin).resolve() == Path(loaded).resolve()


def guarded(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    """`function`, with its failures raised as an `InputError` that begins with `label`.

    It counts as the same function: what is signed by module and name stays so.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (InputError, InfeasibleError):
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"{label} failed: {describe(error)}") from error

    call.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)
    return call


def describe(error: BaseException) -> str:
    """An error of the user's code on one line, with the place there that it came from."""
    place, trace = "", error.__traceback__
    package = str(Path(__file__).parents[1])
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith((package, "<frozen", sys.prefix, sys.base_prefix)):
            place = f" ({Path(file).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    message = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {message}' if message else ''}{place}"


def call_reference(reference: str, options: Mapping[str, Any], *, key: str, folder: Path) -> Any:
    """Call what `reference` names with `options`.

    Raises:
        InputError: it is not there, or it fails; names the key and the user's own error.
    """
    function = load_reference(reference, key=key, folder=folder)
    return guarded(function, f"{key} = {reference!r}")(**options)
