"""What a controller of a family must keep to."""

from __future__ import annotations

from typing import Any

import torch

from haq.adaptive.controller import Controller, Signals, run_adaptive
from haq.values.errors import InputError


def check_controller(controller: Controller, *, members: int, inputs: Any, classes: int = 10, **signals: float) -> None:
    """Check a controller of your own; a test is this line.

    It chooses members that there are, stops after each has run at most once, chooses the same for the same signals, and
    is the same after `from_doc(to_doc())`.

    Args:
        controller: as it is when it starts.
        members: how many it chooses among.
        inputs: a batch of what the family is called with.
        classes: of the outputs.
        signals: of the device that it needs, such as `battery=0.5`.

    Raises:
        AssertionError: says which rule it breaks.
    """
    assert isinstance(controller, Controller), f"{type(controller).__name__} lacks choose, to_doc or from_doc"
    document = controller.to_doc()
    again = type(controller).from_doc(document)
    assert again.to_doc() == document, "from_doc(to_doc()) is another controller"
    paths = [_path(one, members, inputs, classes, signals) for one in (type(controller).from_doc(document), again)]
    assert paths[0] == paths[1], f"the same signals led to members {paths[0]} and {paths[1]}"
    fresh = type(controller).from_doc(document)
    try:
        found = run_adaptive(
            lambda x, m: torch.eye(members, classes)[m].expand(len(x), -1), fresh, inputs, members=members, **signals
        )
    except InputError as error:
        raise AssertionError(str(error)) from error
    assert (found.answered >= 0).all(), "a sample was left without an answer"


def _path(controller: Controller, members: int, inputs: Any, classes: int, signals: dict[str, float]) -> list[int]:
    """Members that run for the first sample, whose outputs tell the classes apart better and better."""
    path: list[int] = []
    outputs = None
    for _ in range(members + 1):
        last = path[-1] if path else None
        chosen = controller.choose(Signals(inputs=inputs[:1], outputs=outputs, member=last, **signals))
        assert 0 <= chosen < members, f"chose member {chosen}; there are members 0 to {members - 1}"
        if chosen == last:
            return path
        assert chosen not in path, f"chose member {chosen} twice for one sample, after {path}"
        path.append(chosen)
        outputs = torch.eye(1, classes) * (len(path) - 1)
    raise AssertionError(f"never stops: {path}")
