"""Experiments that come with the package."""

from __future__ import annotations

from pathlib import Path

from haq.values.errors import InputError


def _folder() -> Path:
    """In a checkout beside the package, in an installation inside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def example_names() -> list[str]:
    """What `example_path` knows."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


def example_path(name: str) -> Path:
    """The file of an experiment that comes with the package.

    Raises:
        InputError: there is none of that name; lists those that there are.
    """
    if name not in example_names():
        raise InputError(f"--example {name!r}: unknown; known: {', '.join(example_names())}")
    return _folder() / f"{name}.toml"
