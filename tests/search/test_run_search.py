"""The one loop and its journal: what is measured, kept, replayed and refused."""

import errno
import os
import random
import subprocess
import sys

import pytest

from haq.search import STRATEGIES
from haq.search.journal import Journal
from haq.search.loop import run_search
from haq.search.strategy import SearchStrategy, check_options
from haq.solve.settings import Gap, Seconds, Solver
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.values.trial import Measurement

POLICIES = [Policy.uniform(["a"], Precision.parse(f"w{bits}a8")) for bits in range(2, 9)]


class Listed(SearchStrategy):
    """Proposes the listed policies in order, whatever it learns; remembers what it was told."""

    def __init__(self):
        self.told, self.seen = [], set()

    def suggest(self, count):
        new = [policy for policy in POLICIES if policy.key not in self.seen][:count]
        self.seen |= {policy.key for policy in new}
        return new

    def update(self, trials):
        self.told += trials
        self.seen |= {trial.policy.key for trial in trials}


class Options(Listed):
    """Has options of every kind."""

    def __init__(self, problem, *, seed=0, floor=0.0, gap: Gap = 0.0, solver: Solver = "auto", time: Seconds = 1.0):
        super().__init__()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gab": 1}, r"search\.options\.gab: no option of Options; it has gap, solver, time"),
        ({"seed": 1}, r"search\.options\.seed: no option"),
        ({"gap": "0"}, r"search\.options\.gap = '0': input should be a valid number"),
        ({"gap": True}, r"search\.options\.gap = True"),
        ({"gap": float("nan")}, r"search\.options\.gap = nan"),
        ({"time": 0}, r"search\.options\.time = 0: input should be greater than 0"),
        ({"solver": "scip"}, r"search\.options\.solver = 'scip': input should be 'auto', 'highs' or 'cbc'"),
    ],
)
def test_bad_options_of_a_strategy_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        check_options(Options, options)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_options_of_every_strategy_can_be_checked(name):
    check_options(STRATEGIES[name], {})


class Bits:
    """Prices a policy by its bits; everything up to `most` is within budget."""

    def __init__(self, most=8):
        self.most = most

    def costs(self, policy):
        return {"bops": float(policy["a"].weight.bits)}

    def violation(self, policy):
        return {"bops": 1.0} if policy["a"].weight.bits > self.most else {}


class Counting:
    """Evaluates by the bits and counts; results come back in reverse order of each batch."""

    def __init__(self, capacity=1, fail_after=None):
        self.capacity, self.fail_after, self.waiting, self.evaluated = capacity, fail_after, [], []

    def submit(self, policy):
        self.waiting.append(policy)

    def next_completed(self):
        if self.fail_after is not None and len(self.evaluated) >= self.fail_after:
            raise KeyboardInterrupt
        policy = self.waiting.pop()
        self.evaluated.append(policy.key)
        return policy, Measurement(float(policy["a"].weight.bits), "ptq")

    def finished(self):
        return []


def search(journal, executor, *, strategy=None, max_trials=5, **options):
    return run_search(
        Bits(), strategy or Listed(), executor, name="listed", max_trials=max_trials, journal=journal, **options
    )


def lines(path):
    return path.read_text().splitlines()


@pytest.mark.parametrize("capacity", [1, 3])
def test_every_proposal_is_measured_once_and_journalled(tmp_path, capacity):
    executor = Counting(capacity)
    journal = Journal.create(tmp_path / "trials.jsonl", {"seed": 0})
    trials = search(journal, executor, fixed=[("uniform", POLICIES[3]), ("greedy", POLICIES[3])])
    assert len(executor.evaluated) == len(set(executor.evaluated)) == 5
    assert [trial.source for trial in trials].count("listed") == 5
    assert {t.measurement.score for t in trials if t.policy == POLICIES[3]} == {5.0}
    assert len(lines(tmp_path / "trials.jsonl")) == 1 + 7


@pytest.mark.parametrize("killed_after", range(6))
@pytest.mark.parametrize("torn", ["", '{"number": 99, "sour'])
def test_a_killed_run_resumes_to_the_same_trials(tmp_path, killed_after, torn):
    fixed = [("uniform", POLICIES[6])]
    whole = search(Journal.create(tmp_path / "whole.jsonl", {"seed": 0}), Counting(), fixed=fixed)
    path = tmp_path / "trials.jsonl"
    first, second = Counting(fail_after=killed_after), Counting()
    with pytest.raises(KeyboardInterrupt), Journal.create(path, {"seed": 0}) as journal:
        search(journal, first, fixed=fixed)
    with path.open("a") as stream:
        stream.write(torn)
    resumed = search(Journal.resume(path, {"seed": 0}), second, fixed=fixed)
    assert [trial.to_doc() for trial in resumed] == [trial.to_doc() for trial in whole]
    assert len(first.evaluated) + len(second.evaluated) == 6
    assert lines(path) == lines(tmp_path / "whole.jsonl")


def test_a_proposal_over_budget_is_a_bug(tmp_path):
    journal = Journal.create(tmp_path / "trials.jsonl", {})
    with pytest.raises(RuntimeError, match="over budget"):
        run_search(Bits(most=1), Listed(), Counting(), name="listed", max_trials=1, journal=journal)


def test_an_exhausted_strategy_ends_the_search(tmp_path):
    assert len(search(Journal.create(tmp_path / "trials.jsonl", {}), Counting(), max_trials=50)) == len(POLICIES)


def begun(path, setup, *, trials=1):
    """A journal of a few trials, closed."""
    with Journal.create(path, setup) as journal:
        search(journal, Counting(), max_trials=trials)
    return path


def test_a_changed_setup_is_refused_with_what_changed(tmp_path):
    path = begun(tmp_path / "trials.jsonl", {"config": {"seed": 0, "budgets": {"latency_ms": 4.0}}})
    with pytest.raises(InputError, match=r"config\.budgets\.latency_ms \(4\.0 -> 5\.0\)"):
        Journal.resume(path, {"config": {"seed": 0, "budgets": {"latency_ms": 5.0}}})


def test_a_run_is_never_overwritten(tmp_path):
    path = begun(tmp_path / "trials.jsonl", {})
    before = path.read_bytes()
    with pytest.raises(InputError, match="add --resume"):
        Journal.create(path, {})
    assert path.read_bytes() == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_journal_without_trials_holds_nothing_back(tmp_path, resume):
    path = begun(tmp_path / "trials.jsonl", {"seed": 0}, trials=0)
    with Journal.open(path, {"seed": 1}, resume=resume) as journal:
        search(journal, Counting(), max_trials=1)
    with Journal.resume(path, {"seed": 1}) as journal:
        assert len(journal.trials) == 1


@pytest.mark.parametrize("resume", [False, True])
def test_only_one_process_writes_a_journal(tmp_path, resume):
    pytest.importorskip("fcntl")
    path = tmp_path / "trials.jsonl"
    with Journal.create(path, {}) as journal:
        search(journal, Counting(), max_trials=1)
        with pytest.raises(InputError, match=r"another haq|a run already exists"):
            Journal.open(path, {}, resume=resume)
        assert len(lines(path)) == 2


@pytest.mark.parametrize("name", ["listed", "uniform"])
def test_a_strategy_named_like_a_baseline_resumes_to_the_same_trials(tmp_path, name):
    def run(journal, strategy, executor):
        with journal:
            return run_search(
                Bits(), strategy, executor, name=name, max_trials=3, journal=journal, fixed=[("uniform", POLICIES[0])]
            )

    whole = run(Journal.create(tmp_path / "whole.jsonl", {}), Listed(), Counting())
    path = tmp_path / "trials.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(Journal.create(path, {}), Listed(), Counting(fail_after=2))
    resumed = run(Journal.resume(path, {}), Listed(), Counting())
    assert [trial.to_doc() for trial in resumed] == [trial.to_doc() for trial in whole]


def test_a_full_disk_leaves_a_journal_to_resume(tmp_path, monkeypatch):
    path = begun(tmp_path / "trials.jsonl", {})
    with Journal.resume(path, {}) as journal, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(InputError, match=r"trials\.jsonl: cannot be written: No space left"):
            search(journal, Counting(), max_trials=2)
    with Journal.resume(path, {}) as journal:
        assert len(search(journal, Counting(), max_trials=3)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"setup": {}}\nnot json\n', ":2: not a journal line"),
        ('{"setup": {}}\n{"number": 0}\n', "not a journal of trials"),
        ("[]\n[]\n", "not a journal of trials"),
        ('{"set": {}}\n{}\n', "not a journal of trials"),
    ],
)
def test_a_damaged_journal_is_refused(tmp_path, content, message):
    path = tmp_path / "trials.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        Journal.resume(path, {})
    assert path.read_text() == content


def test_trials_that_stand_twice_are_refused(tmp_path):
    path = begun(tmp_path / "trials.jsonl", {})
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    with pytest.raises(InputError, match="appear twice"):
        Journal.resume(path, {})


def test_a_journal_torn_in_its_first_line_starts_anew(tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_text('{"schema_ver')
    assert Journal.resume(path, {"seed": 1}).trials == []
    assert len(lines(path)) == 1


def test_lines_in_any_order_are_read_by_number(tmp_path):
    path = begun(tmp_path / "trials.jsonl", {}, trials=3)
    header, *trials = lines(path)
    path.write_text("\n".join([header, *reversed(trials)]) + "\n")
    with Journal.resume(path, {}) as journal:
        assert [trial.number for trial in journal.trials] == [0, 1, 2]


class Shuffled(Counting):
    """Several at once, done in an order that a seed decides; dies after some."""

    def __init__(self, seed, **options):
        super().__init__(**options)
        self.rng = random.Random(seed)

    def next_completed(self):
        self.rng.shuffle(self.waiting)
        return super().next_completed()


class Learning(Listed):
    """What it proposes depends on all it was told, in order, and on what it has proposed."""

    def suggest(self, count):
        new = []
        for _ in range(count):
            number = hash((tuple(t.measurement.score for t in self.told), len(self.seen)))
            left = [policy for policy in MANY if policy.key not in self.seen]
            new.append(left[number % len(left)])
            self.seen.add(new[-1].key)
        return new


MANY = [
    Policy({"a": Precision.parse(f"w{weight}a8"), "b": Precision.parse(f"w{other}a8")})
    for weight in range(2, 9)
    for other in range(2, 9)
]


def learned(journal, executor, parallel=3):
    return search(journal, executor, strategy=Learning(), max_trials=12, parallel=parallel, fixed=[("u", MANY[0])])


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_completion_changes_nothing(tmp_path, seed):
    in_order = learned(Journal.create(tmp_path / "first.jsonl", {}), Counting(1))
    shuffled = learned(Journal.create(tmp_path / "second.jsonl", {}), Shuffled(seed, capacity=4))
    assert [trial.to_doc() for trial in shuffled] == [trial.to_doc() for trial in in_order]
    assert sorted(lines(tmp_path / "first.jsonl")) == sorted(lines(tmp_path / "second.jsonl"))


@pytest.mark.parametrize("killed_after", range(13))
def test_a_run_of_several_at_once_resumes_to_the_same_trials(tmp_path, killed_after):
    whole = learned(Journal.create(tmp_path / "whole.jsonl", {}), Counting(1))
    path = tmp_path / "trials.jsonl"
    first, second = Shuffled(1, capacity=3, fail_after=killed_after), Shuffled(2, capacity=2)
    with pytest.raises(KeyboardInterrupt), Journal.create(path, {}) as journal:
        learned(journal, first)
    with Journal.resume(path, {}) as journal:
        assert [trial.to_doc() for trial in learned(journal, second)] == [trial.to_doc() for trial in whole]
    assert len(first.evaluated) + len(second.evaluated) == len({*first.evaluated, *second.evaluated}) == len(whole)


def test_an_interrupted_search_keeps_what_is_done(tmp_path):
    class Interrupted(Counting):
        def finished(self):
            return [Counting.next_completed(self) for _ in range(2)]

        def next_completed(self):
            raise KeyboardInterrupt

    with Journal.create(tmp_path / "trials.jsonl", {}) as journal:
        with pytest.raises(KeyboardInterrupt):
            learned(journal, Interrupted(3))
        assert len(journal.trials) == 2


def test_a_journal_cut_anywhere_is_recovered(tmp_path):
    whole = search(Journal.create(tmp_path / "whole.jsonl", {"seed": 0}), Shuffled(3), max_trials=3, parallel=2)
    content = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "trials.jsonl"
    for length in range(0, len(content), 31):
        path.write_bytes(content[:length])
        with Journal.resume(path, {"seed": 0}) as journal:
            again = search(journal, Counting(), max_trials=3, parallel=2)
        assert [trial.to_doc() for trial in again] == [trial.to_doc() for trial in whole]


def test_a_disk_that_takes_half_a_line_leaves_whole_lines_only(tmp_path):
    resource = pytest.importorskip("resource")
    path = begun(tmp_path / "trials.jsonl", {}, trials=2)
    whole = path.read_bytes()
    code = (
        "import resource, signal, sys; from pathlib import Path; from haq.search.journal import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(whole) + 40}, {len(whole) + 40}))\n"
        "journal = Journal.resume(Path(sys.argv[1]), {}); trial = journal.trials[0]\n"
        "journal.append(type(trial)(9, 'more', trial.policy, trial.costs, trial.measurement))\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "trials.jsonl: cannot be written: File too large" in done.stderr
    assert path.read_bytes() == whole


class Stubborn(Listed):
    """Proposes its first policy again and again."""

    def suggest(self, count):
        return [POLICIES[0]] * count


def test_what_was_measured_is_not_measured_again(tmp_path):
    executor = Counting()
    trials = search(Journal.create(tmp_path / "trials.jsonl", {}), executor, strategy=Stubborn(), max_trials=4)
    assert len(trials) == 4
    assert executor.evaluated == [POLICIES[0].key]


def test_a_strategy_is_told_in_the_order_of_its_proposals(tmp_path):
    strategy = Listed()
    search(Journal.create(tmp_path / "trials.jsonl", {}), Counting(3), strategy=strategy, max_trials=6, parallel=3)
    assert [trial.policy for trial in strategy.told] == POLICIES[:6]
