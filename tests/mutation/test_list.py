"""The list of faults is one: each is a change, in a file that is there, with tests that are there."""

from pathlib import Path

import pytest
from run import ROOT, Fault, copied, faults, table

ALL = faults()


def test_there_are_enough_and_each_stands_once():
    assert len(ALL) >= 150
    assert len({(fault.file, fault.old, fault.new) for fault in ALL}) == len(ALL)
    assert all(fault.old != fault.new for fault in ALL)
    assert not [path for fault in ALL for path in fault.tests if not (ROOT / path.partition("::")[0]).exists()]


def test_few_are_out_of_date():
    stale = [f"{fault.file}: {fault.what}" for fault in ALL if not fault.stands(ROOT)]
    assert len(stale) <= 0.1 * len(ALL), stale


def test_the_score_leaves_out_what_is_undecided():
    def fault(room: str) -> Fault:
        return Fault(room, "", "", "", "", ())

    text = table([(fault("a"), "killed", 0.0), (fault("a"), "survived", 0.0), (fault("b"), "timeout", 0.0)])
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["a", "2", "1", "1", "0", "50.0", "%"],
        ["b", "1", "0", "0", "1", "-"],
        ["all", "3", "1", "1", "1", "50.0", "%"],
    ]


@pytest.mark.slow
def test_a_fault_is_seen_and_the_tree_is_left_alone(tmp_path: Path):
    from run import run

    known = [fault for fault in ALL if fault.what == "affine loses a level"]
    before = (ROOT / known[0].file).read_text()
    assert [found for _, found, _ in run(known, timeout=300)] == ["killed"]
    assert (ROOT / known[0].file).read_text() == before
    assert (copied(tmp_path) / "haq" / "__init__.py").exists()
