"""How a policy is measured: the rungs of a ladder, cheapest first."""

from __future__ import annotations

from dataclasses import dataclass

REPAIRING = ("adaround", "gptq")
"""Rungs that round weights by data, without training the network."""
POST_TRAINING = ("ptq", "bn", *REPAIRING)
TRAINING = ("shared", "qat")
KINDS = (*POST_TRAINING, *TRAINING)
PATTERN = rf"^({'|'.join(KINDS)}|qat:[1-9][0-9]*)$"


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to measure a policy.

    Attributes:
        name: as in an experiment file: a name in `KINDS`, or `qat:STEPS`.
    """

    name: str

    @property
    def kind(self) -> str:
        """The name without the steps."""
        return self.name.partition(":")[0]

    @property
    def steps(self) -> int | None:
        """Steps of fine-tuning, where the name says so."""
        steps = self.name.partition(":")[2]
        return int(steps) if steps else None

    @property
    def trains(self) -> bool:
        """Whether weights are trained, for one policy or for many."""
        return self.kind in TRAINING

    @property
    def joint(self) -> bool:
        """Whether weights are trained once for all policies."""
        return self.kind == "shared"

    @property
    def tunes(self) -> bool:
        """Whether each policy is fine-tuned on its own."""
        return self.kind == "qat"

    @property
    def repair(self) -> str | None:
        """The repair that the rung is, if it is one."""
        return self.kind if self.kind in REPAIRING else None
