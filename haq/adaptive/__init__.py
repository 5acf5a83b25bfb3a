"""Several policies of one model in one artifact, and who chooses among them while it runs.

In: quantized states of one network, cheapest first; signals. Out: a `Family` that switches, a `Controller`'s choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from haq.edges.lazy import lazy_names

if TYPE_CHECKING:
    from haq.adaptive.cascade import Cascade
    from haq.adaptive.controller import Controller, Signals, controller_of, run_adaptive
    from haq.adaptive.family import Family, Member, load
    from haq.adaptive.gate import Gate
    from haq.adaptive.runtime import Fixed, Ladder, Rule, replay
    from haq.adaptive.sessions import OnnxFamily, load_onnx

__all__ = [
    "Cascade",
    "Controller",
    "Family",
    "Fixed",
    "Gate",
    "Ladder",
    "Member",
    "OnnxFamily",
    "Rule",
    "Signals",
    "controller_of",
    "load",
    "load_onnx",
    "replay",
    "run_adaptive",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "haq.adaptive.cascade": ("Cascade",),
        "haq.adaptive.controller": ("Controller", "Signals", "controller_of", "run_adaptive"),
        "haq.adaptive.family": ("Family", "Member", "load"),
        "haq.adaptive.gate": ("Gate",),
        "haq.adaptive.runtime": ("Fixed", "Ladder", "Rule", "replay"),
        "haq.adaptive.sessions": ("OnnxFamily", "load_onnx"),
    },
)
