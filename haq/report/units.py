"""How numbers are written: label, unit and prefix of each metric; scores, differences and what counts as a tie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from haq.values.trial import METRICS

_LABELS = {
    "latency_ms": "Latency",
    "energy_mj": "Energy",
    "size_bytes": "Weight size",
    "peak_activation_bytes": "Peak activation memory",
    "bops": "Bit operations",
    "average_weight_bits": "Average weight bits",
    "sensitivity": "Predicted loss increase",
    "accuracy_drop": "Accuracy drop",
}
_UNITS = {"accuracy_drop": "points"}
_PREFIXES: dict[str, tuple[tuple[float, str], ...]] = {
    "latency_ms": ((1e3, "s"), (1.0, "ms"), (1e-3, "µs"), (1e-6, "ns")),
    "energy_mj": ((1e3, "J"), (1.0, "mJ"), (1e-3, "µJ"), (1e-6, "nJ")),
    "size_bytes": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "bytes")),
    "peak_activation_bytes": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "bytes")),
    "bops": ((1e12, "TBOPs"), (1e9, "GBOPs"), (1e6, "MBOPs"), (1.0, "BOPs")),
}
TIE_ERRORS = 2.0
"""Scores that differ by no more than this many standard errors of the difference are a tie."""


@dataclass(frozen=True, slots=True)
class Unit:
    """How a metric is shown: `value / factor`, followed by `name`."""

    label: str
    name: str
    factor: float = 1.0

    @property
    def axis(self) -> str:
        return f"{self.label} [{self.name}]" if self.name else self.label


def unit_of(metric: str, largest: float) -> Unit:
    """The unit in which values of `metric` up to `largest` read best; bytes and operations get a prefix."""
    text = _LABELS.get(metric, metric)
    prefixes = _PREFIXES.get(metric, ())
    for factor, name in prefixes:
        if abs(largest) >= factor or (factor, name) == prefixes[-1]:
            return Unit(text, name, factor)
    return Unit(text, _UNITS.get(metric, ""))


def metric_label(metric: str) -> str:
    """`Latency` for `latency_ms`; a metric that is not ours keeps its name."""
    return _LABELS.get(metric, metric)


def number(value: float | None, *, digits: int = 4) -> str:
    """`value` with `digits` significant digits and thousands separators; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.{digits - 1}e}".replace("-", "−", 1 if value < 0 else 0)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def amount(metric: str, value: float | None, *, digits: int = 4) -> str:
    """A value of `metric` with its unit: `4.25 ms`, `18 KiB`; a dash for none."""
    if value is None:
        return "–"
    unit = unit_of(metric, value)
    return f"{number(value / unit.factor, digits=digits)} {unit.name}".rstrip()


def column(metric: str, values: Sequence[float | None], *, digits: int = 4) -> tuple[str, list[str]]:
    """A table column: its heading with the unit, and the values with as many decimals as the largest one needs."""
    known = [value for value in values if value is not None]
    unit = unit_of(metric, max(map(abs, known), default=0.0))
    largest = max((abs(value) / unit.factor for value in known), default=0.0)
    decimals = min(9, max(0, digits - 1 - math.floor(math.log10(largest)))) if largest > 0 else 0
    whole = unit.name in ("bytes", "BOPs")
    texts = ["–" if v is None else f"{v / unit.factor:,.{0 if whole else decimals}f}".replace("-", "−") for v in values]
    return (f"{unit.label} {unit.name}".rstrip()), texts


def score(value: float | None, unit: str, *, signed: bool = False) -> str:
    """A score with two decimals (four where it is no percentage), `signed` for differences, which are in points."""
    if value is None:
        return "–"
    places = 2 if unit == "%" else 4
    text = f"{value:{'+' if signed else ''}.{places}f}"
    if signed and float(text) == 0:
        text = f"{0:.{places}f}"
    shown = "points" if signed and unit == "%" else unit
    return f"{text.replace('-', '−')} {shown}".rstrip()


def is_tie(difference: float, errors: Iterable[float | None]) -> bool:
    """Whether two scores are too close to tell apart, by the standard errors of each (unknown ones count as 0)."""
    return abs(difference) <= TIE_ERRORS * math.hypot(*(error or 0.0 for error in errors))


def in_order(metrics: Iterable[str], *, first: Iterable[str] = ()) -> list[str]:
    """Metrics as they are shown everywhere: those in `first` (the budgeted ones) ahead, then in the usual order."""
    order, ahead = [*METRICS, "average_weight_bits", "sensitivity", "accuracy_drop"], set(first)
    return sorted(set(metrics), key=lambda m: (m not in ahead, order.index(m) if m in order else len(order), m))
