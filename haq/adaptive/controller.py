"""Who chooses the member of a family while it runs: the contract, and running a batch under it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.edges.documents import read_json, write_json
from haq.quant.nested import map_tensors, tensors_in
from haq.values.errors import InputError

CONTROLLER = "controller.json"


@dataclass(frozen=True)
class Signals:
    """What a controller may look at; what is not known is `None`.

    Attributes:
        inputs: of one sample, with its batch dimension of one.
        outputs: of that sample from `member`, the one that ran last: `[1, classes]`.
        member: that ran last.
        battery: charge, 0 to 1.
        temperature: of the device, degrees Celsius.
        deadline_ms: until the answer is wanted.
        queue: requests that wait.
        time: seconds on a clock that never goes back.
    """

    inputs: Any = None
    outputs: Tensor | None = None
    member: int | None = None
    battery: float | None = None
    temperature: float | None = None
    deadline_ms: float | None = None
    queue: float | None = None
    time: float | None = None


@runtime_checkable
class Controller(Protocol):
    """Chooses the member that runs next. One that runs twice in a row for one sample has given the answer.

    A class of your own needs these two methods; `haq.testing.check_controller` tells whether it keeps to the contract.
    """

    kind: ClassVar[str]

    def choose(self, signals: Signals) -> int:
        """The number of a member: before anything ran for a sample, and again after each member that did.

        Raises:
            InputError: a signal that it needs is missing.
        """

    def to_doc(self) -> dict[str, Any]:
        """Plain data, from which `from_doc` makes it again."""

    @classmethod
    def from_doc(cls, document: Mapping[str, Any]) -> Controller:
        """What `to_doc` wrote.

        Raises:
            InputError: names the key that is wrong.
        """


@dataclass(frozen=True)
class Adapted:
    """A batch under a controller.

    Attributes:
        outputs: of the member that answered each sample, joined.
        answered: that member, `[samples]`.
        ran: whether a member ran for a sample, `[samples, members]`: what is paid for.
    """

    outputs: Tensor
    answered: NDArray[np.int64]
    ran: NDArray[np.bool_]


def run_adaptive(
    predict: Callable[[Any, int], Any], controller: Controller, inputs: Any, *, members: int, **known: Any
) -> Adapted:
    """Run a batch: each sample by the members that the controller chooses for it.

    Args:
        predict: outputs of a batch from a member, `Family.predict` for one.
        controller: chooses.
        inputs: a batch: a tensor, or tensors in tuples or dictionaries, with the samples first.
        members: how many there are.
        known: signals of all samples, such as `battery`.

    Raises:
        InputError: the controller chooses a member that there is not, goes round in circles or lacks a signal.
    """
    count = len(next(tensors_in(inputs)))
    outputs: list[Tensor | None] = [None] * count
    last = np.full(count, -1, dtype=np.int64)
    ran = np.zeros((count, members), dtype=bool)
    waiting = np.arange(count)
    for _ in range(members + 1):
        wanted = np.array(
            [_choice(controller, inputs, i, outputs[i], int(last[i]), members, known) for i in map(int, waiting)]
        )
        going = wanted != last[waiting]
        waiting, wanted = waiting[going], wanted[going]
        if not len(waiting):
            done = [one for one in outputs if one is not None]
            return Adapted(torch.cat(done) if done else torch.empty(0), last, ran)
        for member in np.unique(wanted):
            chosen = waiting[wanted == member]
            part = map_tensors(lambda tensor, chosen=chosen: tensor[torch.from_numpy(chosen)], inputs)  # type: ignore[misc]
            found = _first(predict(part, int(member)))
            for place, sample in enumerate(chosen):
                outputs[sample], last[sample], ran[sample, member] = found[place : place + 1], member, True
    raise InputError(
        f"controller {controller.kind}: goes on after every member has run; return the same member to stop"
    )


def _choice(
    controller: Controller,
    inputs: Any,
    sample: int,
    outputs: Tensor | None,
    last: int,
    members: int,
    known: Mapping[str, Any],
) -> int:
    one = map_tensors(lambda tensor: tensor[sample : sample + 1], inputs)
    signals = Signals(inputs=one, outputs=outputs, member=None if last < 0 else int(last), **known)
    member = controller.choose(signals)
    if not 0 <= member < members:
        raise InputError(f"controller {controller.kind}: chose member {member}; there are members 0 to {members - 1}")
    return member


def _first(outputs: Any) -> Tensor:
    return next(iter(tensors_in(outputs)))


def _kinds() -> dict[str, type[Controller]]:
    from haq.adaptive.cascade import Cascade
    from haq.adaptive.gate import Gate
    from haq.adaptive.runtime import Fixed, Ladder

    return {kind.kind: kind for kind in (Fixed, Cascade, Gate, Ladder)}


def save_controller(controller: Controller, folder: str | Path, details: Mapping[str, Any] | None = None) -> Path:
    """Write `controller.json` into a family's folder."""
    path = Path(folder) / CONTROLLER
    write_json(path, {"schema_version": 1, "controller": controller.kind, **controller.to_doc(), "fit": details or {}})
    return path


def controller_of(folder: str | Path, *, members: int) -> Controller | None:
    """The controller in a family's folder, or in a file; `None` where the folder has none.

    Raises:
        InputError: damaged, of an unknown kind, or of another number of members.
    """
    path = Path(folder)
    path = path / CONTROLLER if path.is_dir() else path
    if not path.exists():
        return None
    document = read_json(path)
    kinds = _kinds()
    if not isinstance(document, dict) or document.get("controller") not in kinds:
        found = document.get("controller") if isinstance(document, dict) else document
        raise InputError(f"{path}: controller = {found!r:.80}: unknown; known: {', '.join(sorted(kinds))}")
    try:
        made = kinds[document["controller"]].from_doc(document)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    needed = getattr(made, "members", members)
    if needed != members:
        raise InputError(f"{path}: chooses among {needed} members, the family has {members}; fit it anew: haq adapt")
    return made
