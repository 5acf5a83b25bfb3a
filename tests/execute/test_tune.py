"""ASHA among the runs of a sweep: who is ended, by hand; Ray is imported, no cluster is started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.tune")

from haq.execute.tune import GroupedASHA


def added(asha: GroupedASHA, name: str, *, group: str = "device-budget", before: list[float] | None = None) -> Any:
    """A trial as Tune has it; `before`: what it reported before the sweep was resumed."""
    trial = SimpleNamespace(trial_id=name, config={"point": {"group": group}}, last_result={"scores": before or []})
    asha.on_trial_add(None, trial)
    return trial


def goes_on(asha: GroupedASHA, trial: Any, scores: list[float | None]) -> bool:
    """Whether a run that reports these best scores, one by one, is still there in the end."""
    reports = [scores[:count] for count in range(1, len(scores) + 1)]
    return all(asha.on_trial_result(None, trial, {"scores": report}) == "CONTINUE" for report in reports)


def test_after_the_grace_the_better_half_of_those_before_goes_on() -> None:
    asha = GroupedASHA(grace=2, reduction=2, evaluations=8)
    scores = {"first": [1, 5], "behind": [4, 4], "level": [2, 5], "between": [0, 4.9], "late": [6, 6]}
    # Bars at the second evaluation: none, 5, then the medians of (5, 4), (5, 4, 5), (5, 4, 5, 4.9).
    found = {name: goes_on(asha, added(asha, name), list(reported)) for name, reported in scores.items()}
    assert found == {"first": True, "behind": False, "level": True, "between": False, "late": True}


def test_a_run_competes_within_its_group_only() -> None:
    asha = GroupedASHA(grace=1, reduction=3, evaluations=4)
    assert goes_on(asha, added(asha, "a", group="m7-b0"), [9.0])
    assert goes_on(asha, added(asha, "b", group="m7-b1"), [1.0])
    assert not goes_on(asha, added(asha, "c", group="m7-b1"), [0.5])


@pytest.mark.parametrize(("evaluations", "left"), [(8, False), (5, False), (4, True)])
def test_the_next_rung_is_the_grace_times_the_reduction_but_never_the_last_evaluation(
    evaluations: int, left: bool
) -> None:
    asha = GroupedASHA(grace=2, reduction=2, evaluations=evaluations)
    assert goes_on(asha, added(asha, "a"), [1, 1, 1, 3])
    assert goes_on(asha, added(asha, "b"), [1, 1, 1, 2]) == left


def test_a_run_without_a_score_goes_on_until_it_has_one() -> None:
    asha = GroupedASHA(grace=1, reduction=2, evaluations=8)
    assert goes_on(asha, added(asha, "a"), [3.0, 3.0, 3.0])
    late = added(asha, "b")
    assert goes_on(asha, late, [None, None])
    assert not goes_on(asha, late, [None, None, 2.0])


def test_a_resumed_sweep_knows_the_bar_of_its_first_part() -> None:
    asha = GroupedASHA(grace=2, reduction=2, evaluations=8)
    before = added(asha, "a", before=[1.0, 3.0, 7.0])
    assert goes_on(asha, added(asha, "between"), [0.0, 4.0])
    assert not goes_on(asha, added(asha, "behind"), [2.0, 2.0])
    assert goes_on(asha, before, [1.0, 3.0, 7.0, 7.0])
