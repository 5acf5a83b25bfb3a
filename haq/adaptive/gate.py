"""A learned gate: picks the member before paying for any, from a few features of the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from haq.adaptive.bounds import last_that_holds, lower_bound
from haq.adaptive.checks import floats_of, number_of
from haq.adaptive.controller import Signals
from haq.quant.nested import tensors_in
from haq.values.errors import InputError

_GRID = 4
"""Cells of an image along each side that are averaged."""
_MOST = 256
"""Features."""
_PRICES = 200


def features(inputs: Any) -> Tensor:
    """`[samples, features]`, 256 at most: averages over a grid of the first tensor, and each channel's deviation."""
    x = next(iter(tensors_in(inputs))).float()
    if x.dim() == 4:
        size = min(_GRID, *x.shape[2:])
        pooled = nn.functional.adaptive_avg_pool2d(x, size).flatten(1)
        return torch.cat([pooled[:, : _MOST - 1], x.flatten(2).std(dim=2, correction=0)], dim=1)[:, :_MOST]
    flat = x.flatten(1)
    if flat.shape[1] > _MOST:
        flat = nn.functional.adaptive_avg_pool1d(flat[:, None], _MOST)[:, 0]
    return flat


@dataclass(frozen=True)
class Gate:
    """For each member a logistic model of whether it answers right; takes the best value for its price.

    The member with the largest probability of a right answer less `price` times its relative cost runs, once.

    Attributes:
        weights: `[members][features + 1]`, the constant last.
        mean: of each feature, and
        deviation: by which they are standardized.
        costs: of the members, the largest being 1.
        price: what a whole cost of 1 is worth in probability.
    """

    weights: tuple[tuple[float, ...], ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    costs: tuple[float, ...]
    price: float
    kind: ClassVar[str] = "gate"

    @property
    def members(self) -> int:
        return len(self.costs)

    @property
    def parameters(self) -> int:
        """How many numbers it learned."""
        return sum(map(len, self.weights))

    def choose(self, signals: Signals) -> int:
        if signals.member is not None:
            return signals.member
        if signals.inputs is None:
            raise InputError("controller gate: needs the inputs; give Signals(inputs=...)")
        return int(self._choices(self.right(signals.inputs), self.price)[0])

    def right(self, inputs: Any) -> NDArray[np.float64]:
        """Probability that each member is right, `[samples, members]`."""
        x = features(inputs).double().numpy()
        if x.shape[1] != len(self.mean):
            raise InputError(
                f"controller gate: was fitted to inputs with {len(self.mean)} features, these have {x.shape[1]}"
            )
        scaled = (x - np.array(self.mean)) / np.array(self.deviation)
        weights = np.array(self.weights)
        found: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-(scaled @ weights[:, :-1].T + weights[:, -1])))
        return found

    def _choices(self, right: NDArray[np.float64], price: float) -> NDArray[np.int64]:
        found: NDArray[np.int64] = (right - price * np.array(self.costs)).argmax(axis=1)
        return found

    def to_doc(self) -> dict[str, Any]:
        return {
            "weights": [list(row) for row in self.weights],
            "mean": list(self.mean),
            "deviation": list(self.deviation),
            "costs": list(self.costs),
            "price": self.price,
        }

    @classmethod
    def from_doc(cls, document: Mapping[str, Any]) -> Gate:
        rows = document.get("weights")
        if not isinstance(rows, list) or not rows:
            raise InputError(f"weights = {rows!r:.80}: expected a list of rows")
        made = cls(
            tuple(floats_of({"weights": row}, "weights") for row in rows),
            floats_of(document, "mean"),
            floats_of(document, "deviation", least=1e-12),
            floats_of(document, "costs", least=0),
            number_of(document, "price", least=0),
        )
        width = len(made.mean) + 1
        if len(made.weights) != len(made.costs) or len(made.deviation) != len(made.mean):
            raise InputError("weights, costs, mean and deviation: of different lengths")
        if any(len(row) != width for row in made.weights):
            raise InputError(f"weights: expected {width} numbers in each row")
        return made

    @classmethod
    def fit(
        cls,
        train: tuple[Any, Sequence[Tensor], Tensor],
        held_out: tuple[Any, Sequence[Tensor], Tensor],
        *,
        costs: Sequence[float],
        accuracy: float | None = None,
        cost: float | None = None,
        delta: float = 0.05,
    ) -> Gate:
        """Learn on the train split; choose the price on held-out samples.

        Args:
            train: inputs, logits of each member, class numbers.
            held_out: likewise, of samples that no member was trained on.
            costs: of one inference of each member, cheapest first.
            accuracy: least share of right answers, 0 to 1, kept with probability 1 - delta; or
            cost: largest average cost on the held-out samples, in the unit of `costs`.
            delta: see `Cascade.fit`.

        Raises:
            InputError: neither or both targets, or one that cannot be reached; says what can.
        """
        if (accuracy is None) == (cost is None):
            raise InputError("a gate is fitted to a target: give accuracy or cost, and not both")
        x, right = features(train[0]).double(), _right(train[1], train[2])
        mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0).clamp(min=1e-6)
        weights = _logistic(((x - mean) / deviation).numpy(), right)
        relative = tuple(float(one) / max(costs) for one in costs)
        rows = tuple(tuple(map(float, row)) for row in weights)
        gate = cls(rows, tuple(map(float, mean)), tuple(map(float, deviation)), relative, 0.0)
        sure, hits = gate.right(held_out[0]), _right(held_out[1], held_out[2])
        samples = np.arange(len(hits))
        prices = [0.0, *map(float, np.geomspace(1e-4, 100.0, _PRICES))]

        def bound(price: float) -> float:
            return lower_bound(int(hits[samples, gate._choices(sure, price)].sum()), len(hits), delta)

        def average(price: float) -> float:
            return float(np.array(costs)[gate._choices(sure, price)].mean())

        if accuracy is not None:
            price = last_that_holds(prices, lambda one: bound(one) >= accuracy)
            if price is None:
                raise InputError(
                    f"accuracy {accuracy:.4g}: cannot be promised with {len(hits)} samples and probability "
                    f"{1 - delta:g}; the best that can is {max(map(bound, prices)):.4g}"
                )
        else:
            assert cost is not None
            price = next((one for one in prices if average(one) <= cost), None)
            if price is None:
                raise InputError(
                    f"cost {cost:.4g}: cannot be kept; the least average is {min(map(average, prices)):.4g}"
                )
        return cls(gate.weights, gate.mean, gate.deviation, relative, price)


def _right(logits: Sequence[Tensor], targets: Tensor) -> NDArray[np.bool_]:
    """`[samples, members]`."""
    found: NDArray[np.bool_] = torch.stack([one.argmax(dim=1) == targets for one in logits], dim=1).numpy()
    return found


def _logistic(x: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights of one regularized logistic model for each member, `[members, features + 1]`."""
    from sklearn.linear_model import LogisticRegression

    rows = []
    for hits in right.T:
        if hits.all() or not hits.any():  # nothing to tell apart: the smoothed share for every input
            share = (hits.sum() + 1) / (len(hits) + 2)
            rows.append([*[0.0] * x.shape[1], float(np.log(share / (1 - share)))])
            continue
        model = LogisticRegression(max_iter=1000).fit(x, hits)
        rows.append([*model.coef_[0], float(model.intercept_[0])])
    return np.array(rows)
