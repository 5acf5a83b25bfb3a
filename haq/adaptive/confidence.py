"""How sure a member is of its answer: what a cascade compares with its threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor


def maximum_probability(logits: Tensor) -> Tensor:
    """The largest class probability, `[samples]`."""
    return logits.softmax(dim=1).amax(dim=1)


def margin(logits: Tensor) -> Tensor:
    """The largest class probability less the second, `[samples]`."""
    top = logits.softmax(dim=1).topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def entropy(logits: Tensor) -> Tensor:
    """One less the entropy of the class probabilities over that of a uniform guess, `[samples]`."""
    logs = logits.log_softmax(dim=1)
    return 1.0 + (logs.exp() * logs).sum(dim=1) / float(np.log(logits.shape[1]))


CONFIDENCES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "probability": maximum_probability,
    "margin": margin,
    "entropy": entropy,
}


def temperature(logits: Tensor, targets: Tensor) -> float:
    """The T of softmax(logits / T) with the least negative log-likelihood of `targets`.

    Guo et al., "On calibration of modern neural networks" (ICML 2017), section 4.2.

    Args:
        logits: `[samples, classes]`.
        targets: class numbers, `[samples]`.
    """
    wide = logits.double()

    def loss(log: float) -> float:
        return float(torch.nn.functional.cross_entropy(wide / float(np.exp(log)), targets))

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))
