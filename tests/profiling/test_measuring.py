"""Timing, the policies that are timed, and the file of what was timed so far."""

import itertools
import json

import pytest

from haq.profiling.journal import Measurements
from haq.profiling.policies import mixed_policies
from haq.profiling.runtimes.base import Prepared
from haq.profiling.timing import measure_rounds, medians, noise_floor, noise_warning, paced
from haq.values.errors import InputError
from haq.values.formats import Precision

LAYERS = [f"layer{index}" for index in range(12)]
LOW = Precision.parse("w8a8")


def test_rounds_are_interleaved_and_hold_the_least_of_each(monkeypatch):
    monkeypatch.setattr("haq.profiling.timing._SLICE_SECONDS", 0.0)
    order, clock = [], itertools.count(1000, -1)

    def run(name):
        order.append(name)
        return float(next(clock))

    taken = []
    prepared = {name: Prepared(lambda name=name: run(name), {}) for name in "ab"}
    measure_rounds(prepared, 3, threads=1, done=taken.append)
    assert [set(entry) for entry in taken] == [{"a", "b"}] * 3
    assert medians(taken) == taken[1]  # times only fall here
    runs = [name for name, _ in itertools.groupby(order)]
    assert runs == [*"ababab"]  # the warm-up; then a, b; b, a; a, b: neighbours join


def test_the_noise_floor_compares_two_halves():
    rounds = [{"a": 10.0, "b": 5.0}, {"a": 11.0, "b": 5.0}, {"a": 12.0, "b": 6.0}, {"a": 12.0, "b": 7.0}]
    assert medians(rounds) == {"a": 11.5, "b": 5.5}
    assert noise_floor(rounds) == pytest.approx((100 * 0.5 / 11 + 100 * 0.5 / 5.5) / 2)


def test_a_moment_of_speed_does_not_count():
    rounds = [{"a": 10.0 + index / 100, "b": 20.0 + index / 100} for index in range(21)]
    rounds[17]["a"] = 8.0
    assert medians(rounds) == pytest.approx({"a": 10.09, "b": 20.1})


def test_a_slow_spell_of_the_machine_cancels():
    speeds = [1.0, 1.0, 1.3, 1.3, 0.8]
    rounds = [{"float": 9.0 * speed, "int8": 4.0 * speed, "mixed": 7.0 * speed} for speed in speeds]
    assert medians(paced(rounds, ["float", "int8"])) == pytest.approx({"float": 9.0, "int8": 4.0, "mixed": 7.0})
    assert noise_floor(paced(rounds, ["float", "int8"])) == pytest.approx(0.0)
    assert medians(paced(rounds, ["float", "int8"], ms=12.0))["mixed"] == pytest.approx(14.0)


def test_a_busy_machine_is_called_one():
    assert noise_warning(0.5) is None
    assert "the noise floor is 33.7 %: this machine was busy" in noise_warning(33.66)


def test_mixed_policies_differ_from_each_other_and_from_those_excluded():
    first = mixed_policies(LAYERS, LOW, 20, seed=0)
    second = mixed_policies(LAYERS, LOW, 20, seed=0, exclude=[policy.key for policy in first])
    assert len({policy.key for policy in (*first, *second)}) == 40
    assert all(len(set(policy.values())) == 2 for policy in first)
    assert mixed_policies(LAYERS, LOW, 20, seed=0) == first


def test_every_other_policy_is_clustered():
    def switches(policy):
        values = list(policy.values())
        return sum(one != other for one, other in itertools.pairwise(values))

    chosen = mixed_policies([f"layer{index}" for index in range(50)], LOW, 200, seed=3)
    counts = [switches(policy) for policy in chosen]
    assert sum(counts[::2]) < 0.5 * sum(counts[1::2])


def test_a_small_network_gives_what_it_has():
    assert len(mixed_policies(["a", "b"], LOW, 10, seed=0)) == 2


def test_measurements_survive_a_torn_last_line(tmp_path):
    path = tmp_path / "m.jsonl"
    journal = Measurements(path, {"threads": 1}, resume=False)
    journal.add("round", {"a": 1.5})
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"round": {"a"')
    again = Measurements(path, {"threads": 1}, resume=True)
    again.add("round", {"a": 1.4})
    again.close()
    assert again.of("round") == [{"a": 1.5}, {"a": 1.4}]
    assert [next(iter(json.loads(line))) for line in path.read_text().splitlines()] == ["setup", "round", "round"]


@pytest.mark.parametrize(
    ("content", "resume", "message"),
    [
        (None, True, "no such file: nothing to resume"),
        (b'{"setup": {"threads": 1}}\n', False, "measurements already exist; add --resume"),
        (b'{"setup": {"threads": 2}}\n', True, r"the setup changed: threads \(2 -> 1\); name another --out"),
        (b"hello\n", True, "not a file of measurements"),
        (
            b'{"setup": {"threads": 1}}\n{"round": {"a": "fast"}}\n',
            True,
            "not a file of measurements: a line says 'round'",
        ),
        (b'{"setup": {"threads": 1}}\n' + 5000 * b"[" + b"\n", True, "not a file of measurements: nested more than"),
    ],
    ids=["missing", "there", "changed", "garbage", "text for a time", "too deep"],
)
def test_other_files_are_refused(tmp_path, content, resume, message):
    path = tmp_path / "m.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Measurements(path, {"threads": 1}, resume=resume)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("content", [b"", b'{"setup": {"thr'])
def test_a_file_whose_first_line_was_never_whole_is_begun_anew(tmp_path, content, resume):
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    journal = Measurements(path, {"threads": 1}, resume=resume)
    journal.add("round", {"a": 1.0})
    journal.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"setup": {"threads": 1}},
        {"round": {"a": 1.0}},
    ]


def test_two_profiles_do_not_write_one_file(tmp_path):
    first = Measurements(tmp_path / "m.jsonl", {"threads": 1}, resume=False)
    with pytest.raises(InputError, match="another haq is writing it"):
        Measurements(tmp_path / "m.jsonl", {"threads": 1}, resume=True)
    first.close()
