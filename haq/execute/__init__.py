"""Who runs the evaluations, and what is kept of them: in this process, or through Ray. Imports no torch."""

from haq.execute.cache import CachingExecutor, MeasurementCache, cache_folder, cache_info, clear_cache
from haq.execute.local import LocalExecutor
from haq.execute.ray_executor import RayExecutor

__all__ = [
    "CachingExecutor",
    "LocalExecutor",
    "MeasurementCache",
    "RayExecutor",
    "cache_folder",
    "cache_info",
    "clear_cache",
]
