"""What an evaluation came to, whatever happened."""

from __future__ import annotations

import math
from collections.abc import Callable

from haq.values.errors import InfeasibleError, InputError
from haq.values.policy import Policy
from haq.values.trial import Measurement

FAILED = "failed"
"""The fidelity of a measurement that was not made."""


def failed(reason: str, *, seconds: float = 0.0) -> Measurement:
    """The measurement of a policy that could not be measured."""
    return Measurement(math.nan, FAILED, seconds, error=" ".join(reason.split()))


def outcome(evaluator: Callable[[Policy], Measurement], policy: Policy) -> Measurement:
    """The measurement of `policy`; running out of memory and a score that is not finite are failures of the policy.

    Raises:
        InputError, InfeasibleError: what the evaluator says is wrong with the experiment.
    """
    try:
        measurement = evaluator(policy)
    except (InputError, InfeasibleError):
        raise
    except Exception as error:
        if not _out_of_memory(error):
            raise
        return failed(f"out of memory: {error}")
    if measurement.error or math.isfinite(measurement.score):
        return measurement
    reason = f"the score is {measurement.score}"
    return Measurement(math.nan, measurement.fidelity, measurement.seconds, measurement.details, reason)


def _out_of_memory(error: Exception) -> bool:
    """Python's, CUDA's (by name: no torch here), and that of torch's CPU allocator, a plain `RuntimeError`."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, MemoryError) or "OutOfMemoryError" in names or "can't allocate memory" in str(error)
