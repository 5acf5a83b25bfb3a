"""Finding and reading hardware profiles."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from haq.edges.documents import read_toml
from haq.edges.validation import one_line
from haq.hardware.profile import HardwareProfile
from haq.values.errors import InputError


def _folders() -> tuple[Path, ...]:
    package = Path(__file__).resolve().parents[1]
    return (
        Path("hardware_profiles"),
        package.parent / "hardware_profiles",
        package / "_hardware_profiles",
    )


def profile_names() -> tuple[str, ...]:
    """Names of the profiles in `./hardware_profiles` and of those that come with `haq`, sorted."""
    return tuple(sorted({path.stem for folder in _folders() for path in folder.glob("*.toml")}))


def list_profiles() -> tuple[HardwareProfile, ...]:
    """The profiles behind `profile_names`.

    Raises:
        InputError: one of them breaks the schema.
    """
    return tuple(load_profile(name) for name in profile_names())


def _find(name: str, base: Path | None) -> Path:
    if name.endswith(".toml"):
        for path in (Path(name), *([base / name] if base is not None else [])):
            if path.is_file():
                return path
        raise InputError(f"{name}: no such hardware profile file")
    for folder in _folders():
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    close = difflib.get_close_matches(name, profile_names(), 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(f"unknown hardware profile {name!r}; {hint}known: {', '.join(profile_names())}")


def load_profile(name_or_path: str | Path, *, base: Path | None = None) -> HardwareProfile:
    """Read a hardware profile.

    Args:
        name_or_path: a path that ends in `.toml` (relative to the working directory, else to `base`), or the name of a
            file in `./hardware_profiles`, else of one that comes with `haq`.
        base: folder of the file that names the profile.

    Raises:
        InputError: no such profile, or it breaks the schema; one line with the file, the key and the remedy.
    """
    path = _find(str(name_or_path), base)
    document: dict[str, Any] = {"name": path.stem, **read_toml(path)}
    try:
        profile = HardwareProfile.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{path}: {one_line(error)}") from error
    profile._folder = path.parent
    return profile
