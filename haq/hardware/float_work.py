"""What stays in float: how it is priced, and how much of a model it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from haq.values.formats import Precision
from haq.values.network import FloatPart, LayerSpec
from haq.values.trial import Cost

FLOAT32 = Precision.parse("wfp32afp32")
FLOAT_BITS = 32
_WIDE = 4096
"""Channels that no alignment pads."""


def as_layer(part: FloatPart) -> LayerSpec:
    """A linear layer that does as much; what it only looks up (an embedding) is not read as a whole."""
    return LayerSpec(
        name=part.name,
        kind="linear",
        weight_shape=(_WIDE, _WIDE),
        macs=part.macs,
        params=part.params if part.macs else 0,
        bias_elements=0,
        input_shape=(),
        output_shape=(),
        input_elements=part.input_elements,
        output_elements=part.output_elements,
    )


@dataclass(frozen=True)
class FloatRow:
    """What a module holds and computes in float: the same under every policy.

    Attributes:
        missing: metrics of which the device cannot tell what this costs; their totals are lower bounds.
    """

    part: FloatPart
    cost: Cost
    missing: frozenset[str]

    def to_doc(self, metrics: Iterable[str]) -> dict[str, Any]:
        """Plain data, with the costs in `metrics`."""
        return {
            "name": self.part.name,
            "kind": self.part.kind,
            "params": self.part.params,
            "bytes": self.part.bytes,
            "macs": self.part.macs,
            "costs": self.cost.to_doc(metrics),
            "missing": sorted(self.missing),
        }


@dataclass(frozen=True)
class Coverage:
    """How much of a model a policy quantizes: what it has of each, and how much of that is in quantized layers.

    Attributes:
        params: elements of parameters and buffers.
        bytes: of the deployed model.
        macs: multiply-accumulates per sample.
    """

    params: int
    quantized_params: int
    bytes: float
    quantized_bytes: float
    macs: int
    quantized_macs: int

    def to_doc(self) -> dict[str, Any]:
        """Plain data, with the line."""
        return {**asdict(self), "line": self.line}

    @property
    def line(self) -> str:
        """For people: shares in per cent."""
        shares = (
            f"{_share(part, whole)} of {name}"
            for name, part, whole in (
                ("parameters", self.quantized_params, self.params),
                ("bytes", self.quantized_bytes, self.bytes),
                ("multiply-accumulates", self.quantized_macs, self.macs),
            )
        )
        return f"quantized: {', '.join(shares)}"


def _share(part: float, whole: float) -> str:
    """`99.9 %`, and `100 %` only of all."""
    share = 100.0 * part / whole if whole else 100.0
    return "100 %" if part == whole else f"{min(share, 99.9):.1f} %"


_NAMED = 4
"""So many modules are named; the others are counted."""


def coverage_lines(breakdown: Mapping[str, Any]) -> list[str]:
    """What a reader of totals must know: how much is quantized, what is left in float, what the totals lack.

    Args:
        breakdown: the document of a cost report.
    """
    lines = [str(breakdown["coverage"]["line"])]
    left = sorted((row for row in breakdown["float"] if row["bytes"]), key=lambda row: -row["bytes"])
    if left:
        total = sum(row["bytes"] for row in left)
        shown = [f"{_label(row)} {row['bytes']:,.0f}" for row in left]
        lines.append(f"left in float: {total:,.0f} bytes, {_few(shown)}")
    for metric, modules in breakdown["lower_bounds"].items():
        lines.append(f"{metric} is a lower bound: the device does not price the work in float of {_few(modules)}")
    return lines


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['name']} ({row['kind']})" if row["name"] else str(row["kind"])


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
