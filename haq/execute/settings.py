"""`[cache]` and `[executor]` of the experiment file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from haq.edges.validation import Section


class CacheConfig(Section):
    """Measurements kept between runs; see docs/distributed.md."""

    enabled: bool = True
    folder: Path | None = None
    """Relative to the experiment file; default: the user's cache directory. `$HAQ_CACHE_DIR` goes before it."""


class ExecutorConfig(Section):
    """Who evaluates the policies; see docs/distributed.md. All but `kind` need `kind = "ray"`."""

    kind: Literal["local", "ray"] = "local"
    workers: int | None = Field(None, ge=1)
    """Default: as many as this machine has processors."""
    address: str | None = None
    """Of an existing Ray cluster (`host:port`, `auto`); default: one on this machine, for this run."""
    cpus_per_worker: float | None = Field(None, gt=0)
    """Reserved in the cluster; default: 1. Without `threads`, a worker has so many; else its share of this machine."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """Reserved in the cluster; may be a fraction."""
    time_limit: float | None = Field(None, gt=0)
    """Seconds for each evaluation; one that takes longer has failed."""
    retries: int = Field(2, ge=0)
    """How often a policy whose worker died is tried again."""

    @model_validator(mode="after")
    def _used(self) -> ExecutorConfig:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        idle = [name for name, default in defaults.items() if name != "kind" and getattr(self, name) != default]
        if self.kind == "local" and idle:
            raise ValueError(f"{idle[0]}: needs kind = 'ray'; in this process one policy runs after the other")
        return self
