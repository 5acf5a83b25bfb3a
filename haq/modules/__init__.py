"""Modules that take the place of torch's packed ones in a copy, so that all that multiplies is a layer with a name."""

from haq.modules.prepare import plain_paths, prepare

__all__ = ["plain_paths", "prepare"]
