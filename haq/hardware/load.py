"""Finding and reading hardware profiles."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from haq.edges.documents import read_toml
from haq.edges.plugins import add_plugin
from haq.edges.validation import one_line
from haq.hardware.base import ProfileCostModel
from haq.hardware.kinds import COST_MODELS
from haq.hardware.profile import HardwareProfile
from haq.hardware.sections import KindSection
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
        return parse_profile(document, folder=path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse_profile(document: Mapping[str, Any], *, folder: Path = Path()) -> HardwareProfile:
    """The profile that a document with the keys of the file describes.

    Args:
        document: plain data.
        folder: where the files lie that it names.

    Raises:
        InputError: it breaks the schema; one line with the key and the remedy.
    """
    named = document.get("kind")
    if isinstance(named, str):
        add_plugin(COST_MODELS, named, group="haq.cost_models", wanted=ProfileCostModel)
    if isinstance(named, str) and named not in COST_MODELS:
        raise InputError(f"kind: unknown kind {named!r}; known: {', '.join(COST_MODELS)}")
    kind = named if isinstance(named, str) else "capability"  # what is wrong with it is the schema's to say
    model = COST_MODELS[kind]
    common = {key: value for key, value in document.items() if key not in COST_MODELS}
    try:
        if "section" in common:
            raise ValueError("section: unknown key; remove it or check its spelling")
        section = _section(kind, model, document) if isinstance(named, str) else None
        profile = HardwareProfile.model_validate({**common, "section": section})
        model.check_profile(profile)
    except ValidationError as error:
        raise InputError(one_line(error)) from error
    except ValueError as error:
        raise InputError(str(error)) from error
    profile._folder = folder
    profile._energy = model.knows_energy(profile)
    return profile


def _section(kind: str, model: type[ProfileCostModel[Any]], document: Mapping[str, Any]) -> KindSection | None:
    given = {key for key in COST_MODELS if document.get(key) is not None}
    wanted = set() if model.section is None else {kind}
    for key in sorted(wanted - given):
        raise ValueError(f"kind {kind!r} needs a section [{key}]; add it")
    for key in sorted(given - wanted):
        raise ValueError(f"kind {kind!r} does not read section [{key}]; remove it or change the kind")
    if model.section is None:
        return None
    try:
        return model.section.model_validate(document[kind])
    except ValidationError as error:
        raise ValueError(one_line(error, prefix=kind)) from error
