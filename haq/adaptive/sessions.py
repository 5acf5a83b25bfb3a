"""A family in ONNX Runtime: one session for each member, weights in one file that all of them map."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from haq.adaptive.family import Member, members_of, read_document
from haq.deployed.state import ModelState
from haq.edges.documents import check_file, write_bytes
from haq.values.errors import InputError

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

SHARED = "weights.bin"
_LEAST = 256
"""Bytes of the smallest initializer that is shared; smaller ones stay in the member's file."""
_ALIGNED = 64
"""Weights begin at such multiples, for vector loads."""


def save_sessions(folder: Path, model: nn.Module, states: Sequence[ModelState], inputs: Any) -> dict[str, int]:
    """Write `member-<n>.onnx` for each state, and `weights.bin` with each distinct initializer once.

    Any ONNX Runtime reads a member's file where it lies; the external data are the standard's.

    Args:
        folder: of the family.
        model: the float architecture, on the CPU.
        states: of the members, cheapest first.
        inputs: an example of two samples or more.

    Returns:
        `bytes` of all these files, and `sum_of_members`: of the members' files with their weights inside.

    Raises:
        InputError: torch cannot export the model.
    """
    from haq.export.onnx.model import onnx_model

    graphs = [onnx_model(model, state, inputs) for state in states]
    alone = sum(graph.ByteSize() for graph in graphs)
    shared = bytearray()
    places: dict[str, int] = {}
    for graph in graphs:
        for tensor in graph.graph.initializer:
            _move_out(tensor, shared, places)
    write_bytes(folder / SHARED, bytes(shared))
    total = len(shared)
    for number, graph in enumerate(graphs):
        content = graph.SerializeToString()
        write_bytes(folder / f"member-{number}.onnx", content)
        total += len(content)
    return {"bytes": total, "sum_of_members": alone}


def _move_out(tensor: onnx.TensorProto, shared: bytearray, places: dict[str, int]) -> None:
    from onnx import TensorProto, numpy_helper
    from onnx.external_data_helper import set_external_data

    content = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
    if len(content) < _LEAST:
        return
    key = hashlib.sha256(content).hexdigest()
    if key not in places:
        shared.extend(b"\0" * (-len(shared) % _ALIGNED))
        places[key] = len(shared)
        shared.extend(content)
    if not tensor.HasField("raw_data"):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    set_external_data(tensor, SHARED, offset=places[key], length=len(content))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL


class OnnxFamily:
    """The members as ONNX Runtime sessions; needs no torch model.

    Sessions do not change and may run at the same time; choosing a member chooses a session.

    Attributes:
        members: cheapest first.
        document: `family.json`.
        folder: where it is.
    """

    def __init__(self, folder: Path, document: dict[str, Any], sessions: Sequence[ort.InferenceSession]) -> None:
        self.folder, self.document = folder, document
        self.members: tuple[Member, ...] = members_of(document, source=folder)
        self._sessions = tuple(sessions)

    def predict(self, inputs: Any, member: int = -1) -> Any:
        """Outputs of one batch from a member, by default the most precise: one tensor, or a tuple of them."""
        from haq.export.onnx.run import feeds_of

        running = self._sessions[member]
        found = tuple(torch.from_numpy(np.asarray(one)) for one in running.run(None, feeds_of(running, inputs)))
        return found[0] if len(found) == 1 else found

    @property
    def inputs(self) -> list[tuple[str, list[Any], str]]:
        """Name, shape (`None` or a name where any size will do) and ONNX type of each input."""
        return [(value.name, list(value.shape), value.type) for value in self._sessions[0].get_inputs()]


def load_onnx(folder: str | Path, *, threads: int = 1) -> OnnxFamily:
    """The family in `folder` as ONNX Runtime sessions.

    Args:
        folder: written by `haq family`.
        threads: for one operator.

    Raises:
        InputError: no family, one that was written without ONNX, or damaged.
    """
    path, document = Path(folder), read_document(folder)
    try:
        from haq.export.onnx.run import session
    except ImportError as error:
        raise InputError("running a family needs the package onnxruntime: pip install 'haq[onnx]'") from error
    sessions = []
    for number in range(len(document["members"])):
        file = path / f"member-{number}.onnx"
        if not file.is_file():
            raise InputError(f"{file}: not there; make the family anew with haq[onnx] installed")
        check_file(file, limit=None)
        try:
            sessions.append(session(str(file), threads=threads))
        except Exception as error:  # the runtime's own exceptions share no base
            raise InputError(f"{file}: ONNX Runtime cannot load it: {str(error).splitlines()[0]:.200}") from error
    return OnnxFamily(path, document, sessions)
