"""How certain a score is, whatever the metric."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from haq.evaluate.base import Metric
from haq.quant.nested import map_tensors, tensors_in

GROUPS = 10


def jackknife(metric: Metric, outputs: Any, targets: Any, *, groups: int = GROUPS) -> float | None:
    """Standard error of `metric(outputs, targets)` by the delete-a-group jackknife.

    With m_g the metric without every `groups`-th sample from the g-th on, it is the root of
    (groups - 1) / groups * sum over g of (m_g - mean m)^2 (Kott, "The Delete-a-Group Jackknife", Journal of Official
    Statistics 17(4), 2001). No resampling, so the same data give the same figure.

    Args:
        metric: of outputs and targets, in which the first dimension of every tensor counts samples.
        outputs: of the whole split.
        targets: likewise.
        groups: at most one per sample.

    Returns:
        `None` where it cannot be told: tensors that count different samples, fewer than two of them, or a metric that
        fails on a part of the split.
    """
    counts = {len(tensor) if tensor.dim() else 0 for tensor in tensors_in((outputs, targets))}
    samples = counts.pop() if len(counts) == 1 else 0
    groups = min(groups, samples)
    if groups < 2:
        return None
    parts = [torch.arange(samples) % groups != group for group in range(groups)]
    try:
        scores = [float(metric(_part(outputs, part), _part(targets, part))) for part in parts]
    except Exception:
        return None
    mean = sum(scores) / groups
    error = math.sqrt((groups - 1) / groups * sum((score - mean) ** 2 for score in scores))
    return error if math.isfinite(error) else None


def _part(value: Any, kept: Tensor) -> Any:
    return map_tensors(lambda tensor: tensor[kept.to(tensor.device)], value)
