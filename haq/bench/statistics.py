"""Whether one set of numbers is smaller than another beyond chance."""

from __future__ import annotations

import math

import numpy as np

from haq.problem.tables import Floats


def smaller(first: Floats, second: Floats) -> float:
    """p-value of the one-sided Mann-Whitney test that `first` is not stochastically smaller than `second`.

    By the normal approximation with continuity and tie corrections; 1 where all values are equal.
    """
    values = np.concatenate([first, second])
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[group]
    n, m, total = len(first), len(second), len(values)
    statistic = rank[:n].sum() - n * (n + 1) / 2
    ties = (count**3 - count).sum() / (total * (total - 1))
    deviation = math.sqrt(n * m / 12 * (total + 1 - ties))
    return 0.5 * math.erfc((n * m / 2 - statistic - 0.5) / deviation / math.sqrt(2)) if deviation else 1.0
