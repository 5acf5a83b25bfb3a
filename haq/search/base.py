"""The contract of a search strategy, and the one loop that runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Annotated, Any, Literal, Protocol, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from haq.errors import InputError
from haq.search.journal import Journal
from haq.types import Measurement, Policy, Trial

Gap = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Solver = Literal["auto", "highs", "cbc"]
_NOT_OPTIONS = ("seed", "floor")


class SearchStrategy(ABC):
    """Proposes policies and learns from what they measured.

    Built as `Strategy(problem, *, seed, **options)`. The loop calls `suggest` and `update` in turn, and `update` alone
    with the journal's trials when a run resumes; a strategy that got the same updates makes the same next suggestion.
    """

    @abstractmethod
    def suggest(self, count: int) -> list[Policy]:
        """Up to `count` new policies, valid and within budget; an empty list ends the search."""

    @abstractmethod
    def update(self, trials: Sequence[Trial]) -> None:
        """Learn from new trials, or from replayed ones on resume. Never called with a policy twice."""


def check_options(strategy: type[SearchStrategy], options: Mapping[str, Any]) -> None:
    """Check a strategy's options against the keyword arguments of its constructor and their annotations.

    Raises:
        InputError: one that it does not have, or of a wrong type or value.
    """
    keywords = [p.name for p in signature(strategy).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    known = [name for name in keywords if name not in _NOT_OPTIONS]
    hints = get_type_hints(strategy.__init__, include_extras=True)
    for name, value in options.items():
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"search.options.{name}: no option of {strategy.__name__}; {has}")
        try:
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise InputError(f"search.options.{name} = {value!r}: {reason[0].lower()}{reason[1:]}") from error


class Executor(Protocol):
    """Evaluates policies: here, or elsewhere and several at a time."""

    @property
    def capacity(self) -> int:
        """How many policies it evaluates at once."""

    def submit(self, policy: Policy) -> None:
        """Start evaluating `policy`, or queue it."""

    def next_completed(self) -> tuple[Policy, Measurement]:
        """Wait for one submitted policy; each is returned once."""


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
    fixed: Iterable[tuple[str, Policy]] = (),
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Measure the `fixed` policies, then up to `max_trials` that the strategy proposes.

    Trials that stand in the journal are replayed, not measured again; a policy measured before under another source
    keeps its measurement.

    Args:
        problem: prices the policies.
        strategy: proposes them.
        executor: measures them.
        name: the strategy's, as the `source` of its trials.
        max_trials: how many proposals to measure; replayed ones count.
        journal: new, or resumed.
        fixed: `(source, policy)` measured first, whatever the strategy does: baselines. The same ones on resume.
        on_trial: called with each trial, replayed ones too.

    Returns:
        All trials in order.
    """
    measured: dict[str, Measurement] = {}

    def record(source: str, policy: Policy, measurement: Measurement) -> Trial:
        trial = Trial(len(journal.trials), source, policy, problem.costs(policy), measurement)
        journal.append(trial)
        return _seen(trial)

    def _seen(trial: Trial) -> Trial:
        measured[trial.policy.key] = trial.measurement
        on_trial(trial)
        return trial

    for trial in journal.trials:
        _seen(trial)
    baselines = dict.fromkeys(fixed)
    done = {(trial.source, trial.policy) for trial in journal.trials}
    _measure(executor, [pair for pair in baselines if pair not in done], measured, record)
    # Not told by their source: the strategy's name may be a baseline's.
    own = journal.trials[len(baselines) :]
    strategy.update(own)
    while len(own) < max_trials:
        proposed = strategy.suggest(min(executor.capacity, max_trials - len(own)))
        if not proposed:
            break
        for policy in proposed:
            if excess := problem.violation(policy):
                raise RuntimeError(f"strategy {name} proposed a policy over budget: {excess}; this is a bug in it")
        new = _measure(executor, [(name, policy) for policy in proposed], measured, record)
        strategy.update(new)
        own += new
    return journal.trials


def _measure(
    executor: Executor,
    wanted: Sequence[tuple[str, Policy]],
    measured: Mapping[str, Measurement],
    record: Callable[[str, Policy, Measurement], Trial],
) -> list[Trial]:
    """Trials of the `wanted` policies, in their order; each policy is evaluated at most once."""
    trials = [record(source, policy, measured[policy.key]) for source, policy in wanted if policy.key in measured]
    open_: dict[str, list[tuple[str, Policy]]] = {}
    for source, policy in wanted:
        if policy.key not in measured:
            open_.setdefault(policy.key, []).append((source, policy))
    for sources in open_.values():
        executor.submit(sources[0][1])
    for _ in range(len(open_)):
        policy, measurement = executor.next_completed()
        trials += [record(source, policy, measurement) for source, _ in open_.pop(policy.key)]
    return sorted(trials, key=lambda trial: trial.number)
