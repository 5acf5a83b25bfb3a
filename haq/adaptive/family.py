"""A family: members of one network that share what they have in common, and that switch without loading anything."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from haq.adaptive.nesting import derived, nestings
from haq.deployed.state import ModelState
from haq.edges.documents import check_file, read_json, to_json, write_bytes, write_json
from haq.edges.validation import one_line
from haq.export.torch_file import restored, state_document, state_of
from haq.quant.nested import call_model
from haq.values.errors import InputError
from haq.values.policy import Policy

DOCUMENT, WEIGHTS = "family.json", "weights.safetensors"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Member:
    """One policy of a family.

    Attributes:
        name: `member-0` is the cheapest.
        policy: layer -> precision, as in `policy.json`.
        costs: predicted, per inference.
        search_score: of the member as packed, on the search split.
        alone: of the same policy on its own, where that was measured.
    """

    name: str
    policy: dict[str, Any]
    costs: dict[str, float]
    search_score: float | None = None
    alone: float | None = None

    @classmethod
    def of(cls, number: int, policy: Policy, costs: Mapping[str, float], **scores: float | None) -> Member:
        """The member that comes `number`th, counted from the cheapest."""
        return cls(f"member-{number}", policy.to_doc(), dict(costs), **scores)


def save_family(
    folder: Path, states: Sequence[ModelState], members: Sequence[Member], *, nested: bool, details: Mapping[str, Any]
) -> dict[str, int]:
    """Write a family's `family.json` and `weights.safetensors`: each distinct tensor once.

    Args:
        folder: is made.
        states: of the members, cheapest first.
        members: what is known of them.
        nested: leave out codes that are the leading bits of another member's (see `haq.adaptive.nesting`).
        details: what else the document says.

    Returns:
        `bytes` of the weights file, and `sum_of_members`: of as many files, one for each.

    Raises:
        InputError: members of different models, or the folder cannot be written.
    """
    _check_alike(states)
    parts = [state_document(state) for state in states]
    stored: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    inside = nestings([document for _, document in parts], [tensors for tensors, _ in parts]) if nested else {}
    alone = 0
    for number, (tensors, document) in enumerate(parts):
        alone += len(save(tensors, metadata={"haq": to_json(document)}))
        names = {}
        for name, tensor in tensors.items():
            if (number, name) in inside:
                continue
            key = _content(tensor)
            stored[key] = tensor
            names[name] = key
        nests = {name: entry for (member, name), entry in inside.items() if member == number}
        entries.append({**asdict(members[number]), "state": document, "tensors": names, "nested": nests})
    content = save({key: tensor.contiguous() for key, tensor in stored.items()})
    write_bytes(folder / WEIGHTS, content)
    document = {"schema_version": SCHEMA_VERSION, "kind": "family", **details, "members": entries}
    write_json(folder / DOCUMENT, document)
    return {"bytes": len(content), "sum_of_members": alone}


def _check_alike(states: Sequence[ModelState]) -> None:
    shapes = [{name: tensor.shape for name, tensor in state.tensors.items() if "bias" not in name} for state in states]
    for state, shape in zip(states[1:], shapes[1:], strict=True):
        shared = shape.keys() & shapes[0].keys()
        if set(state.layers) != set(states[0].layers) or any(shape[name] != shapes[0][name] for name in shared):
            raise InputError("members of a family must be policies of one model; these name different layers or shapes")


def _content(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()[:32]


def read_document(folder: str | Path) -> dict[str, Any]:
    """`family.json`, checked.

    Raises:
        InputError: no family, damaged, or of a later release.
    """
    path = Path(folder) / DOCUMENT
    if not path.is_file():
        raise InputError(f"{folder}: is no family: has no {DOCUMENT}; make one: haq family RUN --members 4 --out F")
    document = read_json(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a JSON object; make the family anew")
    if document.get("schema_version") != SCHEMA_VERSION or document.get("kind") != "family":
        raise InputError(f"{path}: schema_version {document.get('schema_version')!r:.80}: this haq reads 1")
    if not isinstance(document.get("members"), list) or not document["members"]:
        raise InputError(f"{path}: members: expected a list of one or more; make the family anew")
    return document


def members_of(document: Mapping[str, Any], *, source: str | Path) -> tuple[Member, ...]:
    """The members that a document lists.

    Raises:
        InputError: names the key that is wrong.
    """
    keys = Member.__dataclass_fields__
    try:
        known = [{key: value for key, value in entry.items() if key in keys} for entry in document["members"]]
        return tuple(TypeAdapter(list[Member]).validate_python(known))
    except ValidationError as error:
        raise InputError(f"{Path(source) / DOCUMENT}: members.{one_line(error)}") from error
    except AttributeError as error:
        raise InputError(f"{Path(source) / DOCUMENT}: members: expected objects; make the family anew") from error


class Family:
    """The members as torch modules that share their common tensors; one of them is in use.

    Calls go to the member in use; `switch` changes it between two calls and copies nothing.

    Attributes:
        members: cheapest first.
        current: number of the member in use.
    """

    def __init__(self, members: Sequence[Member], modules: Sequence[nn.Module]) -> None:
        self.members = tuple(members)
        self._modules = tuple(modules)
        _share(self._modules)
        self.current = len(self.members) - 1

    def switch(self, member: int) -> None:
        """Put another member in use.

        Raises:
            InputError: there is no such member.
        """
        if not 0 <= member < len(self.members):
            raise InputError(f"member {member}: this family has members 0 to {len(self.members) - 1}")
        self.current = member

    def module(self, member: int) -> nn.Module:
        """A member as a plain module in evaluation mode."""
        return self._modules[member]

    def predict(self, inputs: Any, member: int | None = None) -> Any:
        """Outputs of one batch from `member`, by default the one in use, which stays in use."""
        chosen = self.current if member is None else member
        if not 0 <= chosen < len(self.members):
            raise InputError(f"member {chosen}: this family has members 0 to {len(self.members) - 1}")
        with torch.no_grad():
            return call_model(self._modules[chosen], inputs)

    def __call__(self, inputs: Any) -> Any:
        return self.predict(inputs)


def _share(modules: Sequence[nn.Module]) -> None:
    """Let parameters and buffers of equal content be one tensor in memory."""
    known: dict[str, Tensor] = {}
    for module in modules:
        for part in module.modules():
            for held in (part._parameters, part._buffers):
                for name, tensor in held.items():
                    if tensor is not None and tensor.numel() > 1:
                        held[name] = known.setdefault(f"{type(tensor).__name__} {_content(tensor.detach())}", tensor)  # type: ignore[assignment]


def load(folder: str | Path, model: nn.Module) -> Family:
    """The family in `folder`, as torch modules; runs no code from its files.

    Args:
        folder: written by `haq family`.
        model: the float architecture, on the CPU; its own weights do not matter, and it is left as it is.

    Raises:
        InputError: no family, damaged, or of another model.
    """
    members, states, full = _read(folder)
    modules = [
        restored(model, state, tensors, source=f"{folder}, {member.name}")
        for state, tensors, member in zip(states, full, members, strict=True)
    ]
    return Family(members, modules)


def load_states(folder: str | Path, model: nn.Module) -> list[ModelState]:
    """What each member of the family in `folder` was made of; arguments and errors as `load` has them."""
    members, states, full = _read(folder)
    return [
        state_of(model, state, tensors, source=f"{folder}, {member.name}")
        for state, tensors, member in zip(states, full, members, strict=True)
    ]


def _read(folder: str | Path) -> tuple[tuple[Member, ...], list[dict[str, Any]], list[dict[str, Tensor]]]:
    """Members, and of each the document and all tensors of its state."""
    document = read_document(folder)
    path = Path(folder) / WEIGHTS
    check_file(path, limit=None)
    try:
        with safe_open(str(path), framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a safetensors file: {error}") from error
    members = members_of(document, source=folder)
    try:
        parts = [{name: stored[key] for name, key in entry["tensors"].items()} for entry in document["members"]]
        states = [entry["state"] for entry in document["members"]]
        nests = [entry["nested"] for entry in document["members"]]
        full = [derived(number, nests[number], parts, states) for number in range(len(parts))]
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise InputError(f"{Path(folder) / DOCUMENT}: damaged: {error!r:.80}; make the family anew") from error
    return members, states, full
