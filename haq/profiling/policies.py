"""Policies to measure: mixtures of float and low precision, by layer and in runs of layers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from haq.profiling.runtimes.base import FLOAT
from haq.values.formats import Precision
from haq.values.policy import Policy

_LONGEST_RUN = 8
_MOST_TRIES = 100


def anchors(layers: Sequence[str], low: Precision) -> list[Policy]:
    """All float, and all low."""
    return [Policy.uniform(layers, FLOAT), Policy.uniform(layers, low)]


def mixed_policies(
    layers: Sequence[str], low: Precision, count: int, *, seed: int, exclude: Iterable[str] = ()
) -> list[Policy]:
    """Random mixed policies, all different: by turns runs of layers (clustered) and independent layers.

    The share of low layers is uniform between 0 and 1 in both.

    Args:
        layers: in execution order.
        low: the low precision compared with float.
        count: how many; fewer where the network has not so many.
        seed: of the draw.
        exclude: keys of policies that must not be among them.
    """
    rng = random.Random(seed)
    seen = {policy.key for policy in anchors(layers, low)} | set(exclude)
    chosen: list[Policy] = []
    failed = 0
    while len(chosen) < count and failed < 2 * _MOST_TRIES:
        # A small network runs out of one kind: then the other.
        draw = _clustered if (len(chosen) + failed // _MOST_TRIES) % 2 == 0 else _independent
        failed += 1
        flags = draw(len(layers), rng)
        policy = Policy({name: low if flag else FLOAT for name, flag in zip(layers, flags, strict=True)})
        if policy.key not in seen:
            seen.add(policy.key)
            chosen.append(policy)
            failed = 0
    return chosen


def _independent(count: int, rng: random.Random) -> list[bool]:
    share = rng.random()
    return [rng.random() < share for _ in range(count)]


def _clustered(count: int, rng: random.Random) -> list[bool]:
    share, flags = rng.random(), list[bool]()
    while len(flags) < count:
        flags += [rng.random() < share] * rng.randint(2, _LONGEST_RUN)
    return flags[:count]
