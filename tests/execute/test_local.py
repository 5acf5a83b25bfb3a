"""Evaluations in this process: in order, and every way to fail is told."""

import math

import pytest

from haq.execute import LocalExecutor
from haq.execute.outcome import outcome
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.values.trial import Measurement

POLICIES = [Policy.uniform("ab", Precision.parse(f"w{bits}a8")) for bits in (2, 4, 8)]


def test_policies_are_evaluated_in_the_order_in_which_they_came():
    asked = []

    def evaluator(policy):
        asked.append(policy)
        return Measurement(1.0, "ptq")

    executor = LocalExecutor(evaluator)
    for policy in POLICIES:
        executor.submit(policy)
    assert asked == executor.finished() == []
    assert [executor.next_completed()[0] for _ in POLICIES] == POLICIES == asked
    with pytest.raises(ValueError, match="no policy is waiting"):
        executor.next_completed()


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_a_failure(score):
    found = outcome(lambda policy: Measurement(score, "ptq", 2.0), POLICIES[0])
    assert not found.ok
    assert found.error == f"the score is {score}"
    assert found.seconds == 2.0


class OutOfMemoryError(RuntimeError):
    """As torch calls CUDA's."""


@pytest.mark.parametrize(
    "error",
    [MemoryError("no more"), OutOfMemoryError("no more"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["Python's", "CUDA's", "torch's on the CPU"],
)
def test_too_little_memory_is_a_failure_of_the_policy(error):
    def evaluator(policy):
        raise error

    found = outcome(evaluator, POLICIES[0])
    assert not found.ok
    assert found.error.startswith("out of memory")


@pytest.mark.parametrize("error", [InputError("wrong"), ZeroDivisionError("a bug")])
def test_what_is_wrong_with_the_experiment_is_raised(error):
    def evaluator(policy):
        raise error

    with pytest.raises(type(error)):
        outcome(evaluator, POLICIES[0])
