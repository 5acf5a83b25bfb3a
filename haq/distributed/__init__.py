"""Compressed gradients for any `DistributedDataParallel` model: fewer bits between workers, the same optimizer.

In: a DDP model and a compressor's name. Out: a registered communication hook. To add a compressor: one file with a
subclass of `Compressor` and one line in `compressors.py`. See docs/gradient_compression.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from haq.edges.lazy import lazy_names

if TYPE_CHECKING:
    from haq.distributed.base import Compressor, Place
    from haq.distributed.compressors import COMPRESSORS, compress
    from haq.distributed.cost_model import Link, collective_seconds
    from haq.distributed.feedback import ErrorFeedback
    from haq.distributed.hook import Compression, GradientError

__all__ = [
    "COMPRESSORS",
    "Compression",
    "Compressor",
    "ErrorFeedback",
    "GradientError",
    "Link",
    "Place",
    "collective_seconds",
    "compress",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "haq.distributed.base": ("Compressor", "Place"),
        "haq.distributed.compressors": ("COMPRESSORS", "compress"),
        "haq.distributed.cost_model": ("Link", "collective_seconds"),
        "haq.distributed.feedback": ("ErrorFeedback",),
        "haq.distributed.hook": ("Compression", "GradientError"),
    },
)
