"""A cascade: the cheapest member first, the next one only for samples that it is not sure of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.adaptive.bounds import last_that_holds, lower_bound, upper_bound
from haq.adaptive.checks import floats_of, number_of, word_of
from haq.adaptive.confidence import CONFIDENCES, temperature
from haq.adaptive.controller import Signals
from haq.values.errors import InputError

_GRID = 200
"""Thresholds that are tried."""


@dataclass(frozen=True)
class Cascade:
    """Stops at the first member whose confidence reaches the threshold; the last one always answers.

    Wang et al., "Wisdom of committees" (ICLR 2022); confidences are those of softmax(logits / temperature).

    Attributes:
        confidence: a name in `CONFIDENCES`.
        threshold: of the confidence.
        temperatures: of each member.
    """

    confidence: str
    threshold: float
    temperatures: tuple[float, ...]
    kind: ClassVar[str] = "cascade"

    @property
    def members(self) -> int:
        return len(self.temperatures)

    def choose(self, signals: Signals) -> int:
        """The next member up, or the one that just ran where it is sure enough."""
        if signals.member is None:
            return 0
        if signals.outputs is None:
            raise InputError("controller cascade: needs the outputs of the member that ran; give Signals(outputs=...)")
        sure = float(self._sure(signals.outputs, signals.member)[0]) >= self.threshold
        return signals.member if sure else min(signals.member + 1, self.members - 1)

    def _sure(self, logits: Tensor, member: int) -> Tensor:
        return CONFIDENCES[self.confidence](logits.float() / self.temperatures[member])

    def to_doc(self) -> dict[str, Any]:
        return {**asdict(self), "temperatures": list(self.temperatures)}

    @classmethod
    def from_doc(cls, document: Mapping[str, Any]) -> Cascade:
        return cls(
            word_of(document, "confidence", CONFIDENCES),
            number_of(document, "threshold"),
            floats_of(document, "temperatures", least=1e-6),
        )

    @classmethod
    def fit(
        cls,
        logits: Sequence[Tensor],
        targets: Tensor,
        *,
        costs: Sequence[float],
        confidence: str = "margin",
        accuracy: float | None = None,
        cost: float | None = None,
        delta: float = 0.05,
    ) -> Cascade:
        """The least threshold that reaches a target on held-out samples, with probability 1 - delta beyond them.

        Args:
            logits: of each member, cheapest first, each `[samples, classes]`.
            targets: class numbers, `[samples]`; samples that no member was trained on.
            costs: of one inference of each member.
            confidence: a name in `CONFIDENCES`.
            accuracy: least share of right answers, 0 to 1; or
            cost: largest average cost, in the unit of `costs`.
            delta: probability that new samples do not keep to it.

        Raises:
            InputError: neither or both targets, or one that cannot be reached; says what can.
        """
        if (accuracy is None) == (cost is None):
            raise InputError("a cascade is fitted to a target: give accuracy or cost, and not both")
        if confidence not in CONFIDENCES:
            raise InputError(f"confidence {confidence!r}: unknown; known: {', '.join(CONFIDENCES)}")
        temperatures = tuple(temperature(one, targets) for one in logits)
        plain = cls(confidence, 0.0, temperatures)
        sure = torch.stack([plain._sure(one, member) for member, one in enumerate(logits)]).numpy()
        right = torch.stack([one.argmax(dim=1) == targets for one in logits]).numpy()
        grid = np.unique(np.quantile(sure[:-1], np.linspace(0, 1, _GRID)))
        if accuracy is not None:
            safest_first = [float(np.nextafter(sure.max(), np.inf)), *map(float, grid[::-1])]
            held = _accuracy_test(sure, right, accuracy, delta)
            found = last_that_holds(safest_first, held)
            if found is None:
                best = max(_bound(right[_answers(sure, t), np.arange(len(targets))], delta) for t in safest_first)
                raise InputError(
                    f"accuracy {accuracy:.4g}: cannot be promised with {len(targets)} samples and probability "
                    f"{1 - delta:g}; the best that can is {best:.4g}"
                )
        else:
            assert cost is not None
            found = last_that_holds([float(t) for t in grid], lambda t: _cost_bound(sure, t, costs, delta) <= cost)
            if found is None:
                least = _cost_bound(sure, float(grid[0]), costs, delta)
                raise InputError(f"cost {cost:.4g}: cannot be kept; the least average that can is {least:.4g}")
        return cls(confidence, found, temperatures)


def _answers(sure: NDArray[Any], threshold: float) -> NDArray[np.int64]:
    """The member that answers each sample."""
    stops = sure >= threshold
    stops[-1] = True
    found: NDArray[np.int64] = stops.argmax(axis=0)
    return found


def _bound(hits: NDArray[np.bool_], delta: float) -> float:
    return lower_bound(int(hits.sum()), len(hits), delta)


def _accuracy_test(sure: NDArray[Any], right: NDArray[np.bool_], accuracy: float, delta: float) -> Any:
    samples = np.arange(right.shape[1])
    return lambda threshold: _bound(right[_answers(sure, threshold), samples], delta) >= accuracy


def _cost_bound(sure: NDArray[Any], threshold: float, costs: Sequence[float], delta: float) -> float:
    """An upper bound of the average cost: of each member's share of samples that come to it."""
    answered, samples = _answers(sure, threshold), sure.shape[1]
    shares = [upper_bound(int((answered >= m).sum()), samples, delta / (len(costs) - 1)) for m in range(1, len(costs))]
    return costs[0] + sum(share * cost for share, cost in zip(shares, costs[1:], strict=True))
