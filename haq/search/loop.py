"""The one search loop: propose, evaluate, learn, journal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from haq.search.journal import Journal
from haq.search.strategy import SearchStrategy
from haq.values.policy import Policy
from haq.values.trial import Measurement, Trial


class Executor(Protocol):
    """Evaluates policies: here, or elsewhere and several at a time."""

    @property
    def capacity(self) -> int:
        """How many policies it evaluates at once."""

    def submit(self, policy: Policy) -> None:
        """Start evaluating `policy`, or queue it."""

    def next_completed(self) -> tuple[Policy, Measurement]:
        """Wait for one submitted policy; each is returned once, in any order."""

    def finished(self) -> list[tuple[Policy, Measurement]]:
        """What is done by now and was not returned yet, without waiting: asked when a search is interrupted."""

    def close(self) -> None:
        """Stop what still runs, and release workers."""


class Priced(Protocol):
    """What the loop needs of a `Problem`."""

    def costs(self, policy: Policy) -> dict[str, float]:
        """Metric -> predicted value."""

    def violation(self, policy: Policy) -> dict[str, float]:
        """Metric -> excess over its budget; empty within budget."""


def run_search(
    problem: Priced,
    strategy: SearchStrategy,
    executor: Executor,
    *,
    name: str,
    max_trials: int,
    journal: Journal,
    parallel: int | None = None,
    fixed: Iterable[tuple[str, Policy]] = (),
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Measure the `fixed` policies, and up to `max_trials` that the strategy proposes.

    At most `parallel` proposals are open at once. The strategy learns of them one by one in the order in which it
    made them, whichever is measured first, and may propose another after each: what it proposes depends on `parallel`
    and on scores, never on the time an evaluation takes or on who does it. The journal has each trial as soon as it is
    measured, under the number of its proposal.

    Trials that stand in the journal are replayed, not measured again; a policy measured before under another source
    keeps its measurement.

    Args:
        problem: prices the policies.
        strategy: proposes them.
        executor: measures them.
        name: the strategy's, as the `source` of its trials.
        max_trials: how many proposals to measure; replayed ones count.
        journal: new, or resumed.
        parallel: how many proposals may be open; default: what the executor evaluates at once. The same on resume.
        fixed: `(source, policy)` measured first, whatever the strategy does: baselines. The same ones on resume.
        on_trial: called with each trial, replayed ones too.

    Returns:
        All trials in order.
    """
    desk = _Desk(problem, executor, journal, on_trial)
    try:
        for source, policy in dict.fromkeys(fixed):
            desk.submit(source, policy)
        _search(problem, strategy, desk, name=name, max_trials=max_trials, parallel=parallel or executor.capacity)
        while desk.waiting:
            desk.wait()
    except KeyboardInterrupt:
        desk.collect()
        raise
    return journal.trials


def _search(
    problem: Priced, strategy: SearchStrategy, desk: _Desk, *, name: str, max_trials: int, parallel: int
) -> None:
    made = 0
    if parallel == 1:  # One at a time, the trials alone bring a strategy to where it was.
        replayed = desk.replay()
        made = len(replayed)
        strategy.update(replayed)
    open_: deque[int] = deque()
    while True:
        free = min(parallel - len(open_), max_trials - made)
        proposed = strategy.suggest(free) if free > 0 else []
        for policy in proposed:
            if excess := problem.violation(policy):
                raise RuntimeError(f"strategy {name} proposed a policy over budget: {excess}; this is a bug in it")
        open_ += [desk.submit(name, policy) for policy in proposed]
        made += len(proposed)
        if not open_:
            return
        strategy.update([desk.trial(open_.popleft())])


class _Desk:
    """Numbers the proposals, has each policy evaluated once, and journals what comes back."""

    def __init__(
        self, problem: Priced, executor: Executor, journal: Journal, on_trial: Callable[[Trial], None]
    ) -> None:
        self.waiting: dict[str, list[tuple[int, str, Policy]]] = {}
        self._problem, self._executor, self._journal, self._on_trial = problem, executor, journal, on_trial
        self._next = 0
        self._done: dict[int, Trial] = {}
        self._measured: dict[str, Measurement] = {}
        for trial in journal.trials:
            self._know(trial)

    def submit(self, source: str, policy: Policy) -> int:
        """The number of a new proposal. One that stands in the journal counts as it stands there."""
        number, self._next = self._next, self._next + 1
        if number in self._done:
            return number
        if policy.key in self._measured:
            self._record(number, source, policy, self._measured[policy.key])
            return number
        if policy.key not in self.waiting:
            self._executor.submit(policy)
        self.waiting.setdefault(policy.key, []).append((number, source, policy))
        return number

    def replay(self) -> list[Trial]:
        """The trials that the journal has from the next number on, without a gap; they need no proposal."""
        trials = []
        while self._next in self._done:
            trials.append(self._done[self._next])
            self._next += 1
        return trials

    def trial(self, number: int) -> Trial:
        """The trial of a proposal, waiting for it where needed."""
        while number not in self._done:
            self.wait()
        return self._done[number]

    def wait(self) -> None:
        """Wait for any one evaluation."""
        self._take(*self._executor.next_completed())

    def collect(self) -> None:
        """Journal what is measured already."""
        for policy, measurement in self._executor.finished():
            self._take(policy, measurement)

    def _take(self, policy: Policy, measurement: Measurement) -> None:
        for number, source, wanted in self.waiting.pop(policy.key):
            self._record(number, source, wanted, measurement)

    def _record(self, number: int, source: str, policy: Policy, measurement: Measurement) -> None:
        trial = Trial(number, source, policy, self._problem.costs(policy), measurement)
        self._journal.append(trial)
        self._know(trial)

    def _know(self, trial: Trial) -> None:
        self._done[trial.number] = trial
        self._measured[trial.policy.key] = trial.measurement
        self._on_trial(trial)
