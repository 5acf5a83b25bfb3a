"""`search.remeasure`: the best policies timed end to end, and the budget corrected until the choice is confirmed.

An optimiser picks where the cost model errs in its favour. So the latency budget is first tightened by the profile's
guard band; then the K best policies are measured, the predictions near them are scaled by what was measured, and the
problem is solved again, until it proposes nothing that has not been measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from haq.edges.documents import read_checked, write_checked
from haq.edges.validation import Section, one_line
from haq.hardware import profile_warnings
from haq.hardware.costs import cost_report
from haq.problem.problem import Problem
from haq.profiling.machine import open_runtime
from haq.profiling.policies import anchors
from haq.profiling.runtimes.base import Prepared, Runtime
from haq.profiling.runtimes.choice import RuntimeChoice
from haq.profiling.timing import Rounds, measure_rounds, medians, noise_floor, noise_warning, paced, paces
from haq.solve.settings import SolverSettings
from haq.solve.solve import solve
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.values.trial import Trial

if TYPE_CHECKING:
    from haq.edges.progress import Reporter
    from haq.experiment.experiment import Experiment

LATENCY = "latency_ms"
_MOST_TURNS = 6
_ROUNDS = 20
_NOTED_PACE = 0.05
_MOST_SPELLS = 6
"""So many times the rounds on a machine that is too busy to tell."""
_PLAIN = SolverSettings()


@dataclass
class Remeasured:
    """What re-measuring found.

    Attributes:
        budget: milliseconds that the user allows.
        guard_percent: of the profile.
        corrected: the budget for predicted milliseconds, so that measured ones keep to `budget`.
        turns: how often the problem was solved.
        measured: policy key -> milliseconds.
        stable: whether the last solution proposed nothing new.
    """

    budget: float
    guard_percent: float
    corrected: float
    turns: int = 0
    measured: dict[str, float] = field(default_factory=dict)
    stable: bool = False

    def to_doc(self) -> dict[str, Any]:
        return {"schema_version": 1, **asdict(self)}


class _Times(Section):
    """What the file of a `Stopwatch` holds."""

    pace: float = Field(gt=0)
    times: dict[str, Annotated[float, Field(gt=0)]]

    @classmethod
    def read(cls, path: Path) -> _Times:
        try:
            return cls.model_validate(read_checked(path))
        except ValidationError as error:
            raise InputError(f"{path}: {one_line(error)}; remove it to have the policies timed anew") from error


class Stopwatch:
    """Times policies end to end, each once, at the pace of the profile; a file keeps the times for a resumed run.

    A few policies take seconds to time, and from one second to the next the clock of a processor changes by more than
    the profile is wrong. So the two policies to which the profile is anchored are timed in every round, and what counts
    is how much longer than these a policy takes.

    Args:
        runtime: executes them.
        path: of the file.
        references: policies and the milliseconds that they took when the profile was made.
        threads: of one operator.
        rounds: interleaved repeats.

    Attributes:
        times: policy key -> milliseconds.
        policies: all that were asked for.
        pace: what the references took in the last timing, relative to the profile.
    """

    def __init__(
        self,
        runtime: Callable[[], Runtime],
        path: Path,
        references: Mapping[Policy, float],
        *,
        threads: int,
        rounds: int = _ROUNDS,
    ) -> None:
        self._make, self._path, self._references = runtime, path, references
        self._threads, self._rounds = threads, rounds
        self._runtime: Runtime | None = None
        self._prepared: dict[str, Prepared] = {}
        known = _Times.read(path) if path.exists() else _Times(pace=1.0, times={})
        self.times, self.pace = dict(known.times), known.pace
        self.policies: list[Policy] = []

    def measure(self, policies: Sequence[Policy]) -> list[float]:
        """Milliseconds of each, the median over interleaved rounds at the profile's pace."""
        self.policies += policies
        new = [policy for policy in policies if policy.key not in self.times]
        if new:
            self._runtime = self._runtime or self._make()
            prepare = self._runtime.prepare
            self._prepared = self._prepared or {policy.key: prepare(policy) for policy in self._references}
            self._time(self._prepared | {policy.key: prepare(policy) for policy in new})
            write_checked(self._path, {"pace": self.pace, "times": self.times})
        return [self.times[policy.key] for policy in policies]

    def _time(self, prepared: Mapping[str, Prepared]) -> None:
        wanted = float(np.exp(np.mean(np.log(list(self._references.values())))))
        rounds: Rounds = []
        at_pace: Rounds = []
        names = list(self._prepared)
        while not rounds or (noise_warning(noise_floor(at_pace)) and len(rounds) < _MOST_SPELLS * self._rounds):
            measure_rounds(prepared, self._rounds, threads=self._threads, done=rounds.append)
            at_pace = paced(rounds, names, ms=wanted)
        self.pace = float(np.median(paces(rounds, names))) / wanted
        self.times |= medians(at_pace)


def profiled_anchors(experiment: Experiment) -> dict[Policy, float]:
    """The two policies to which the experiment's profile is anchored, and what they took."""
    measured = experiment.profile.measured
    assert measured is not None
    ends = anchors(experiment.network.layer_names, Precision.parse(measured.low))
    return {policy: cost_report(experiment.network, experiment.cost_model, policy).totals[LATENCY] for policy in ends}


def check_remeasure(experiment: Experiment) -> None:
    """Raise unless policies of the experiment can be timed, and times compared with its profile.

    Raises:
        InputError: the profile was not measured on this machine, for this model, or no latency is bounded.
    """
    profile, measured = experiment.profile, experiment.profile.measured
    if measured is None or not RuntimeChoice.known(measured):
        raise InputError(
            f"search.remeasure: profile {profile.name} was not measured; make one with haq profile, or remove the key"
        )
    RuntimeChoice.of(measured, command=experiment.config.device.command)
    if LATENCY not in experiment.config.budgets:
        raise InputError("search.remeasure: no budgets.latency_ms to confirm by measuring; add it or remove the key")
    for warning in profile_warnings(profile, experiment.network):
        raise InputError(f"search.remeasure: {warning}; or remove the key")


def remeasure(
    problem: Problem,
    stopwatch: Stopwatch,
    *,
    count: int,
    guard_percent: float,
    show: Reporter,
    solving: SolverSettings = _PLAIN,
) -> tuple[Problem, Remeasured]:
    """The problem with a latency budget that holds when it is measured.

    Args:
        problem: with a budget of `latency_ms`.
        stopwatch: times policies.
        count: how many of the best policies are measured each time.
        guard_percent: how far a prediction is trusted until a measurement confirms it.
        show: shows progress.
        solving: how to solve.
    """
    bound = problem.budgets[LATENCY]
    state = Remeasured(bound, guard_percent, bound / (1 + guard_percent / 100))
    known: dict[str, float] = {}
    for _ in range(_MOST_TURNS):
        current = problem.with_budgets({**problem.budgets, LATENCY: state.corrected})
        solution = solve(current, top=count, **solving.keywords)
        policies = [current.policy(assignment) for assignment in solution.assignments]
        if not policies:
            state.corrected = max(_within(known, state), default=state.corrected)
            break
        state.turns += 1
        new = [policy for policy in policies if policy.key not in state.measured]
        if not new:
            state.stable = True
            break
        times = stopwatch.measure(policies)
        state.measured |= {policy.key: ms for policy, ms in zip(policies, times, strict=True)}
        predicted = [problem.costs(policy)[LATENCY] for policy in policies]
        known |= {policy.key: ms for policy, ms in zip(policies, predicted, strict=True)}
        ratio = float(np.max(np.asarray(times) / np.asarray(predicted)))
        state.corrected = bound / ratio
        show.note(
            f"measured {len(new)} policies: {min(times):.4g} to {max(times):.4g} ms, at most {ratio:.3f} of what was "
            f"predicted; with a budget of {bound:.4g} ms, predictions may reach {state.corrected:.4g}"
        )
    return problem.with_budgets({**problem.budgets, LATENCY: state.corrected}), state


def _within(predicted: dict[str, float], state: Remeasured) -> list[float]:
    """What was predicted for the policies that keep to the budget: what is left where nothing new can be proposed."""
    return [ms for key, ms in predicted.items() if state.measured[key] <= state.budget]


@dataclass
class Confirmation:
    """The measured side of a search: its tightened problem, and the times of the policies it considers.

    Attributes:
        problem: with the corrected budget.
        state: what was found.
        stopwatch: times policies.
    """

    problem: Problem
    state: Remeasured
    stopwatch: Stopwatch

    @classmethod
    def of(
        cls, experiment: Experiment, problem: Problem, folder: Path, show: Reporter, *, resumed: bool
    ) -> Confirmation:
        """Re-measure the best policies of `problem`; times are kept in `folder`, for a run that is resumed."""
        measured = experiment.profile.measured
        assert measured is not None  # see `check_remeasure`

        def runtime() -> Runtime:
            return open_runtime(experiment, RuntimeChoice.of(measured, command=experiment.config.device.command))

        path = folder / "latency.json"
        if not resumed:
            path.unlink(missing_ok=True)
        stopwatch = Stopwatch(runtime, path, profiled_anchors(experiment), threads=measured.threads)
        count = experiment.config.search.remeasure
        tightened, state = remeasure(
            problem,
            stopwatch,
            count=count,
            guard_percent=measured.guard_percent,
            show=show,
            solving=SolverSettings.of(experiment.config.search.options),
        )
        return cls(tightened, state, stopwatch)

    def kept(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials without those that are within the corrected budget and measured to be over the user's."""
        within = [trial.policy for trial in trials if not self.problem.violation(trial.policy)]
        times = self.stopwatch.measure(within)
        self.state.measured |= {policy.key: ms for policy, ms in zip(within, times, strict=True)}
        return [trial for trial in trials if self.state.measured.get(trial.policy.key, 0.0) <= self.state.budget]

    def add_to(self, result: dict[str, Any]) -> None:
        """The measured latency of the answer and the baselines, beside their predictions, and the user's budget."""
        pace = self.stopwatch.pace
        result["remeasured"] = {**self.state.to_doc(), "pace": pace}
        result["budgets"] = {**result["budgets"], LATENCY: self.state.budget}
        for entry in (result["answer"], *result["baselines"].values()):
            if entry is not None:
                entry["measured_latency_ms"] = self.state.measured.get(Policy.from_doc(entry["policy"]).key)
        ms, predicted = result["answer"]["measured_latency_ms"], result["answer"]["costs"][LATENCY]
        result["verdict"] += (
            f" Latency measured end to end: {ms:.4g} ms of at most {self.state.budget:.4g} (predicted: "
            f"{predicted:.4g}, {100 * (predicted / ms - 1):+.1f} %)."
        )
        if abs(pace - 1.0) > _NOTED_PACE:
            result["verdict"] += (
                f" That is at the profile's pace: now this machine takes {100 * (pace - 1):+.0f} %; if it stays so, "
                "profile it again."
            )
