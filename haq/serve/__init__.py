"""A family, or one policy, behind HTTP: `haq serve`.

In: a folder that `haq family` wrote. Out: answers over HTTP, from ranges that follow what comes in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from haq.edges.lazy import lazy_names

if TYPE_CHECKING:
    from haq.serve.app import Limits, make_app
    from haq.serve.engine import Engine

__all__ = ["Engine", "Limits", "make_app"]

__getattr__, __dir__ = lazy_names(__name__, {"haq.serve.app": ("Limits", "make_app"), "haq.serve.engine": ("Engine",)})
