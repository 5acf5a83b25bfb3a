"""`[space]` of the experiment file, and what a budget may be."""

from __future__ import annotations

from pydantic import Field, field_validator

from haq.edges.validation import Section
from haq.values.formats import Format, Precision
from haq.values.trial import METRICS

Bound = float | str | tuple[float | str, ...]
"""Of a budget: a number in the metric's unit, a percentage of uniform 8 bit, or several of them."""

BUDGET_KEYS = (*METRICS, "average_weight_bits", "sensitivity", "accuracy_drop")


class SpaceConfig(Section):
    """Which precisions the search may choose from: what is asked for here, restricted to what the device supports."""

    weights: tuple[str, ...] = ()
    """Formats; left out: those that the device accelerates, layer by layer."""
    activations: tuple[str, ...] = ()
    """Likewise."""
    layers: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Layer name or glob pattern -> precisions (`["w8a8"]`), in place of the product above; the last match counts."""
    first_last: tuple[str, ...] = ()
    """Precisions for the first and the last layer (`["w8a8"]`); empty: like all others."""
    ties: tuple[tuple[str, ...], ...] = ()
    """Groups of layers that take the same precision."""

    @field_validator("weights", "activations")
    @classmethod
    def _formats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one format")
        for name in names:
            Format.parse(name)
        return tuple(dict.fromkeys(names))

    @field_validator("activations")
    @classmethod
    def _activations(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            Format.parse(name).check_activation()
        return names

    @field_validator("first_last")
    @classmethod
    def _precisions(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            Precision.parse(name)
        return tuple(dict.fromkeys(names))

    @field_validator("layers")
    @classmethod
    def _layer_precisions(cls, layers: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for layer, names in layers.items():
            if not names:
                raise ValueError(f"{layer!r} needs at least one precision")
            for name in names:
                Precision.parse(name)
        return layers
