"""The cache of measurements: what is found, what is a miss, and that it is never in the way."""

import json
import math
import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from haq import Experiment, InputError, Measurement, Policy, Precision, run_experiment
from haq.execute import CachingExecutor, LocalExecutor, MeasurementCache, cache_folder, cache_info, clear_cache
from haq.experiment.measurement_key import measurement_context

POLICY = Policy({"a": Precision.parse("w4a8"), "b": Precision.parse("w2a4")})
MEASUREMENT = Measurement(100.0 / 3.0, "ptq", 0.1, {"loss": 1e-17, "score_error": 2.0})
QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
SMALL = ("search.max_trials=2", "evaluator.samples=64", "space.weights=['int2','int8']")


def entry_of(folder):
    (path,) = (path for path in folder.rglob("*.json") if path.name != "context.json")
    return path


@pytest.fixture
def kept(tmp_path):
    MeasurementCache(tmp_path, {"seed": 0}).put(POLICY, MEASUREMENT)
    return tmp_path


def test_a_measurement_comes_back_bit_for_bit(kept):
    assert MeasurementCache(kept, {"seed": 0}).get(POLICY) == MEASUREMENT


@pytest.mark.parametrize("context", [{"seed": 1}, {}, {"seed": 0, "data": "x"}], ids=str)
def test_another_context_is_a_miss(kept, context):
    assert MeasurementCache(kept, context).get(POLICY) is None


def test_an_entry_in_another_contexts_folder_is_a_miss(kept):
    """Copied there, say, by who shares a cache: the entry says its own context."""
    other = MeasurementCache(kept, {"seed": 1})
    other.put(POLICY, MEASUREMENT)
    (theirs,) = (
        path for path in kept.rglob(f"{POLICY.key}.json") if '"seed": 1' in (path.parent / "context.json").read_text()
    )
    ours = next(path for path in kept.rglob(f"{POLICY.key}.json") if path != theirs)
    theirs.write_bytes(ours.read_bytes())
    assert other.get(POLICY) is None


def test_another_policy_is_a_miss(kept):
    assert MeasurementCache(kept, {"seed": 0}).get(Policy.uniform("ab", Precision.parse("w8a8"))) is None


def test_an_entry_damaged_anywhere_is_a_miss_and_is_replaced(kept):
    path, cache = entry_of(kept), MeasurementCache(kept, {"seed": 0})
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            path.write_bytes(damaged)
            assert cache.get(POLICY) in (None, MEASUREMENT)
    for content in (b"", b"[]", b'"x"', b"{}", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(content)
        assert cache.get(POLICY) is None
    cache.put(POLICY, MEASUREMENT)
    assert cache.get(POLICY) == MEASUREMENT


def test_an_entry_in_another_policys_place_is_a_miss(kept):
    other = Policy.uniform("ab", Precision.parse("w8a8"))
    path = entry_of(kept)
    path.rename(path.with_name(f"{other.key}.json"))
    assert MeasurementCache(kept, {"seed": 0}).get(other) is None


def test_a_changed_score_is_a_miss(kept):
    path = entry_of(kept)
    entry = json.loads(path.read_text())
    entry["measurement"]["score"] = 99.0
    path.write_text(json.dumps(entry))
    assert MeasurementCache(kept, {"seed": 0}).get(POLICY) is None


@pytest.mark.parametrize(
    "measurement",
    [Measurement(math.nan, "ptq", error="out of memory"), Measurement(1.0, "ptq", details={"loss": math.inf})],
    ids=["failed", "infinite loss"],
)
def test_what_failed_or_is_not_finite_is_not_kept(tmp_path, measurement):
    MeasurementCache(tmp_path, {}).put(POLICY, measurement)
    assert cache_info(tmp_path).entries == 0


@pytest.mark.parametrize("place", ["a file", "a folder that may not be written"])
def test_a_cache_that_cannot_be_written_says_so_once(tmp_path, place):
    folder = tmp_path / "cache"
    if place == "a file":
        folder.write_text("")
    elif not os.geteuid():
        pytest.skip("root may write anywhere")
    else:
        folder.mkdir(mode=0o500)
    said = []
    cache = MeasurementCache(folder, {}, on_error=said.append)
    for _ in range(3):
        cache.put(POLICY, MEASUREMENT)
        assert cache.get(POLICY) is None
    assert len(said) == 1
    assert "--no-cache" in said[0]


def _write_many(folder, start):
    cache = MeasurementCache(folder, {"seed": 0})
    for number in range(60):
        bits = 2 + (start + number) % 7
        cache.put(Policy({"a": Precision.parse(f"w{bits}a8")}), Measurement(float(bits), "ptq"))
        for other in range(2, 9):
            found = cache.get(Policy({"a": Precision.parse(f"w{other}a8")}))
            assert found is None or found.score == other


def test_several_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes = [context.Process(target=_write_many, args=(tmp_path, start)) for start in range(2)]
    for process in processes:
        process.start()
    _write_many(tmp_path, 3)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert cache_info(tmp_path).entries == 7
    assert not list(tmp_path.rglob("*.tmp"))


def test_info_counts_and_clear_removes_only_what_is_ours(kept):
    (kept / "mine.txt").write_text("keep")
    MeasurementCache(kept, {"seed": 1}).put(POLICY, MEASUREMENT)
    info = cache_info(kept)
    assert (info.entries, info.contexts) == (2, 2)
    assert info.bytes == sum(path.stat().st_size for path in kept.rglob("*.json"))
    assert clear_cache(kept) == info
    assert [path.name for path in kept.iterdir()] == ["mine.txt"]
    assert clear_cache(kept).entries == 0


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path))
    assert cache_folder(Path("configured")) == tmp_path
    monkeypatch.delenv("HAQ_CACHE_DIR")
    assert cache_folder(Path("configured")) == Path("configured")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_folder() == tmp_path / "haq"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_folder() == Path.home() / ".cache" / "haq"


def test_what_is_known_is_not_evaluated(kept):
    asked = []

    def evaluator(policy):
        asked.append(policy)
        return Measurement(1.0, "ptq")

    other = Policy.uniform("ab", Precision.parse("w8a8"))
    executor = CachingExecutor(LocalExecutor(evaluator), MeasurementCache(kept, {"seed": 0}))
    for policy in (other, POLICY):
        executor.submit(policy)
    done = dict(executor.next_completed() for _ in range(2))
    assert done == {POLICY: MEASUREMENT, other: Measurement(1.0, "ptq")}
    assert (asked, executor.hits) == ([other], 1)
    assert MeasurementCache(kept, {"seed": 0}).get(other) == Measurement(1.0, "ptq")


def context(*overrides):
    return measurement_context(Experiment.load(QUICKSTART, overrides=(*SMALL, *overrides)))


@pytest.mark.parametrize(
    "override",
    ["evaluator.samples=65", "evaluator.kind='bn'", "quantization.weight_calibration='minmax'"],
)
def test_what_changes_a_measurement_is_in_the_key(override):
    assert context(override) != context()


@pytest.mark.parametrize("override", ["seed=1", "search.strategy='random'", "budgets.size_bytes='50%'", "name='other'"])
def test_what_changes_no_measurement_is_not_in_the_key(override):
    assert context(override) == context()


def test_other_weights_and_an_edited_metric_are_in_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "edited_metric.py"
    contexts = []
    for text in ("# first", "# second"):
        module.write_text(f"def score(outputs, targets):\n    return 1.0  {text}\n")
        contexts.append(context("evaluator.metric='edited_metric:score'"))
    assert contexts[0]["sources"] != contexts[1]["sources"]
    experiment = Experiment.load(QUICKSTART, overrides=SMALL)
    before = experiment.hashes["model"]
    experiment.model.fc2.weight.data.mul_(1.5)
    changed = Experiment.load(QUICKSTART, overrides=SMALL)
    changed.__dict__["model"] = experiment.model
    assert measurement_context(changed)["hashes"]["model"] != before


def scores(folder):
    rows = (json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()[1:])
    return [(row["policy"], {**row["measurement"], "seconds": 0}) for row in rows]


def test_a_second_run_measures_nothing_and_finds_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "cache"))
    results = []
    for name, more in (("first", ()), ("second", ()), ("without", ("cache.enabled=false",))):
        notes = Notes()
        experiment = Experiment.load(QUICKSTART, overrides=(*SMALL, *more))
        folder, result = run_experiment(experiment, out=tmp_path / name, reporter=notes)
        hits = [note for note in notes.lines if "came from the cache" in note]
        results.append((scores(folder), result["answer"], len(hits)))
    assert results[0][:2] == results[1][:2] == results[2][:2]
    assert [hits for *_, hits in results] == [0, 1, 0]


class Notes:
    """A reporter that keeps the notes."""

    def __init__(self):
        self.lines = []

    def stage(self, name): ...
    def step(self, done, total): ...

    def note(self, text):
        self.lines.append(text)


def test_a_cache_that_cannot_be_cleared_is_one_line(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(InputError, match="cannot be cleared: Permission denied"):
        clear_cache(tmp_path)
