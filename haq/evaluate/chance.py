"""What a model scores that looks at no input and gives one answer for all: the level that a model has to beat."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def chance_score(metric: str, targets: Any) -> float | None:
    """The score of the best constant answer.

    Args:
        metric: `accuracy` and `token_accuracy`: the share of the most frequent class; `negative_perplexity`: the
            frequencies of the classes as probabilities; `negative_mse`: the mean target of the split.
        targets: labels or values of the split.

    Returns:
        `None` for any other metric, or where targets are not of its kind.
    """
    if not isinstance(targets, Tensor):
        return None
    if metric == "negative_mse" and targets.is_floating_point():
        return -float((targets.double() - targets.double().mean(0)).square().mean())
    if targets.is_floating_point() or metric not in ("accuracy", "token_accuracy", "negative_perplexity"):
        return None
    counted = targets if metric == "accuracy" else targets[targets >= 0]
    shares = torch.unique(counted, return_counts=True)[1].double() / max(1, counted.numel())
    if not len(shares):
        return None
    if metric == "negative_perplexity":
        return -math.exp(float(-(shares * shares.log()).sum()))
    return 100.0 * float(shares.max())
