"""Softmax, GELU and layer normalisation in integers (Kim et al., "I-BERT", ICML 2021), in plain Python integers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from haq.engine.graph import TensorFormat

_EXP = (0.35815147, 1.353, 0.344)
"""Equation 13: exp(p) is about a (p + b)^2 + c on (-ln 2, 0]."""
_ERF = (-0.2888, -1.769, 1.0)
"""Equation 8: erf(x) is about sgn(x) (a (min(|x|, -b) + b)^2 + 1)."""
_MOST_HALVINGS = 30
NORM_BITS = 10
"""Fraction bits of a normalised value before its factor."""


def exp_constants(scale: float) -> list[int]:
    """`ln2, b, c` in units of the scale (c of its square times a), as `exponential` takes them."""
    a, b, c = _EXP
    return [max(1, math.floor(math.log(2) / scale)), math.floor(b / scale), math.floor(c / (a * scale * scale))]


def exponential(q: int, constants: Sequence[int]) -> int:
    """Algorithm 2 (i-exp) without its scale: of q <= 0; at most b^2 + c."""
    ln2, b, c = constants
    halvings = min(-q // ln2, _MOST_HALVINGS)
    p = max(q, -_MOST_HALVINGS * ln2) + halvings * ln2
    return ((p + b) * (p + b) + c) >> halvings


def softmax(row: Sequence[int], constants: Sequence[int], fmt: TensorFormat) -> list[int]:
    """Shares of the exponentials of q - max, floor(e 2^bits / sum), as integers of `fmt`."""
    top = max(row)
    return _shares([exponential(q - top, constants) for q in row], fmt)


def softmax_by_table(row: Sequence[int], entries: Sequence[int], fmt: TensorFormat) -> list[int]:
    """The same with the exponential of each distance from the maximum read from a table."""
    top = max(row)
    return _shares([entries[top - q] for q in row], fmt)


def _shares(parts: Sequence[int], fmt: TensorFormat) -> list[int]:
    total, bits = max(1, sum(parts)), fmt.bits
    return [min(max((part << bits) // total + fmt.zero_point, fmt.low), fmt.high) for part in parts]


def gelu_constants(scale: float) -> list[int]:
    """`-b, c, shift` of i-GELU: the clipping point and 1 / a in units of the scale of x / sqrt(2)."""
    a, b, c = _ERF
    unit = scale / math.sqrt(2)
    return [math.floor(-b / unit), math.floor(c / (-a * unit * unit))]


def gelu(q: int, constants: Sequence[int]) -> int:
    """Algorithm 1 (i-GELU) without its scale: x (1 + erf(x / sqrt 2)) in units of scale^3 a / 4."""
    clip, one = constants
    distance = min(abs(q), clip) - clip
    erf = one - distance * distance
    return q * (one + (erf if q >= 0 else -erf))


def square_root(n: int) -> int:
    """floor(sqrt(n)) by Newton's iteration from 2^ceil(bits / 2) (algorithm 4)."""
    if n < 2:
        return n
    y = 1 << -(-n.bit_length() // 2)
    while True:
        better = (y + n // y) // 2
        if better >= y:
            return y
        y = better


def normalized(row: Sequence[int], epsilon: int) -> list[int]:
    """(q - mean) / standard deviation with `NORM_BITS` fraction bits, floored.

    Sums are of n q, not of q / n, so that the mean is exact: (n q - sum) / sqrt(n sum of squares - sum^2 + epsilon).

    Args:
        row: integers, their zero point is of no account.
        epsilon: of the variance, in units of n^2 scale^2.
    """
    n, total = len(row), sum(row)
    deviations = [n * q - total for q in row]
    variance = sum(d * d for d in deviations) // n
    root = max(1, square_root(variance + epsilon))
    return [(d << NORM_BITS) // root for d in deviations]
