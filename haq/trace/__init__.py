"""From a float model to a `Network`: its layers, the tensors between them, and what memory holds at each step."""

from __future__ import annotations

from haq.trace.capture import prepared_model, trace

__all__ = ["prepared_model", "trace"]
