"""What a runtime is to the measurements: policies go in, something that can be timed comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from haq.values.formats import Precision
from haq.values.policy import Policy

FLOAT = Precision.parse("wfp32afp32")


@dataclass(frozen=True)
class Prepared:
    """One policy, ready to be timed.

    Attributes:
        run: one inference of one sample; returns its milliseconds if the runtime times itself, else `None`.
        executed: layer -> the operator that runs for it, as far as the runtime tells.
        unmet: layers that are asked to run in integers and do not, or the reverse.
        repeats_itself: whether one `run` warms up and repeats by itself, so that one a round is enough.
    """

    run: Callable[[], float | None]
    executed: Mapping[str, str]
    unmet: tuple[str, ...] = ()
    repeats_itself: bool = False


class Runtime(Protocol):
    """Executes policies of one experiment's model on one device."""

    @property
    def name(self) -> str:
        """As in `--runtime`."""

    @property
    def title(self) -> str:
        """Name, version and options, for the profile."""

    @property
    def package(self) -> tuple[str, str]:
        """The Python package that executes and its version; two empty strings where it is none of this machine."""

    @property
    def low(self) -> Precision:
        """The precision that is measured against float."""

    def prepare(self, policy: Policy) -> Prepared:
        """Make `policy` ready to run.

        Raises:
            InputError: the runtime cannot run the model; says why.
        """

    def layer_times(self, policy: Policy, *, runs: int) -> Mapping[str, float] | None:
        """Layer -> microseconds within the whole graph, of `runs` runs; `None` where the runtime cannot tell.

        What runs between layers counts to the layer before.
        """
