"""`[sensitivity]` of the experiment file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from haq.edges.validation import Section


class SensitivityConfig(Section):
    """How the loss increase of each choice is predicted."""

    metric: str = "fisher"
    samples: int = Field(512, ge=1)
    batch_size: int = Field(128, ge=1)
    file: Path | None = None
    """Reuse (or write) the table in this file instead of the run folder; refused when its signature differs."""
    interactions: int = Field(0, ge=0)
    """Passes over the samples to spend on what pairs of layers lose together; 0: losses are taken to add up."""
