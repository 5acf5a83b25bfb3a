"""Regret of strategies on a ground truth: how far the best policy found lies behind the best there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from haq.bench.truth import SPLITS, GroundTruth
from haq.problem.problem import Problem
from haq.problem.tables import Bools, Floats
from haq.search import STRATEGIES, check_options, make_strategy
from haq.search.answer import choose
from haq.search.warm_start import no_files, warm_sources
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Measurement, Trial

Score = Literal["metric", "loss"]
_UNSEEDED = ("ilp", "greedy", "uniform")
"""Their seed changes nothing: they run once."""


@dataclass(frozen=True)
class Contender:
    """A strategy and its options.

    Attributes:
        label: how tables and plots call it.
        strategy: its name.
        options: as under `[search.options]`.
        metric: sensitivities that its problem has; empty: those of the table's experiment.
    """

    label: str
    strategy: str
    options: Mapping[str, Any]
    metric: str = ""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InputError(f"unknown strategy {self.strategy!r}; known: {', '.join(sorted(STRATEGIES))}")
        check_options(STRATEGIES[self.strategy], self.options)
        if STRATEGIES[self.strategy].needs_model:
            raise InputError(f"strategy {self.strategy!r} trains the model, and a table has none: use it in haq search")
        for source in self.warm_sources:
            if source not in STRATEGIES:
                no_files(source, 1)

    @property
    def warm_sources(self) -> list[str]:
        """The strategies whose policies come first."""
        return warm_sources(STRATEGIES[self.strategy], self.options)[0]

    @property
    def seeded(self) -> bool:
        """Whether runs of several seeds differ."""
        return any(name not in _UNSEEDED for name in (self.strategy, *self.warm_sources))


@dataclass(frozen=True)
class Case:
    """A ground truth under one budget, with its scores as strategies see them (larger is better).

    Attributes:
        truth: the table.
        metric: the budgeted metric.
        bound: its budget.
        share: of all policies that are within it.
        scores: split -> score per policy.
        within: which policies are within budget.
    """

    truth: GroundTruth
    metric: str
    bound: float
    share: float
    scores: Mapping[str, Floats]
    within: Bools

    def problem(self, sensitivity: str = "") -> Problem:
        """What a strategy is given."""
        problem = self.truth.with_metric(sensitivity) if sensitivity else self.truth.problem
        return problem.with_budgets({self.metric: self.bound}, objective="sensitivity")

    def best(self, split: str) -> float:
        """The score of the optimum."""
        return float(self.scores[split][self.within].max())

    def spread(self, split: str) -> float:
        """The best score within budget less the worst."""
        return float(np.ptp(self.scores[split][self.within]))


@dataclass(frozen=True)
class Curves:
    """Regret of one contender in one case after each evaluation: split -> `[seeds, evaluations]`."""

    contender: Contender
    case: Case
    regret: Mapping[str, Floats]


def cases(truth: GroundTruth, shares: Sequence[float], *, metric: str, score: Score = "metric") -> list[Case]:
    """The table under one budget for each of `shares`: so large a part of all policies is within it.

    Args:
        truth: the table.
        shares: above 0, at most 1.
        metric: to budget.
        score: what is maximised: the table's own metric, or minus its loss.

    Raises:
        InputError: a metric that the table does not price, or a share out of range.
    """
    if metric not in truth.problem.metrics:
        raise InputError(f"--metric {metric}: not priced; {truth.name} prices {', '.join(truth.problem.metrics)}")
    costs = truth.problem.tables.total(metric, truth.assignments)
    chosen = {s: truth.scores[s] if score == "metric" else -truth.losses[s] for s in SPLITS}
    result = []
    for share in shares:
        if not 0 < share <= 1:
            raise InputError(f"--share {share:g}: the part of all policies within budget is above 0 and at most 1")
        bound = float(np.quantile(costs, share, method="higher"))
        within = truth.problem.with_budgets({metric: bound}).within(truth.assignments)
        shape = chosen["search"].shape
        result.append(Case(truth, metric, bound, share, chosen, within.reshape(shape)))
    return result


def run(
    contenders: Iterable[Contender],
    over: Sequence[Case],
    *,
    seeds: int,
    evaluations: int,
    fitted: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Curves]:
    """Every contender in every case with seeds 0, 1, ...; a strategy without randomness runs once."""
    chosen = list(contenders)
    result = []
    for contender in chosen:
        for case in over:
            count = seeds if contender.seeded else 1
            rows = [search(contender, case, seed=seed, evaluations=evaluations, fitted=fitted) for seed in range(count)]
            regret = {split: np.repeat([row[split] for row in rows], seeds // count, axis=0) for split in SPLITS}
            result.append(Curves(contender, case, regret))
            progress(len(result), len(chosen) * len(over))
    return result


def search(contender: Contender, case: Case, *, seed: int, evaluations: int, fitted: bool = False) -> dict[str, Floats]:
    """Regret per split after each evaluation of one search.

    The answer at any time is the policy of best score on the search split so far, ties broken as `haq search` breaks
    them: least predicted loss, then the earlier; or, `fitted`, that of the least loss by the fit to all so far. A
    search that ends early keeps its answer; one that found nothing has the whole spread of scores as regret.
    """
    problem = case.problem(contender.metric)
    strategy = make_strategy(contender.strategy, problem, seed=seed, options=contender.options)
    trials: list[Trial] = []
    answer: Trial | None = None
    regret = {split: np.full(evaluations, case.spread(split)) for split in SPLITS}
    for number in range(evaluations):
        proposed: list[Policy] = strategy.suggest(1)
        if not proposed:
            break
        trials.append(_trial(problem, case, proposed[0], number))
        strategy.update(trials[-1:])
        candidates = trials if fitted or answer is None else [answer, trials[-1]]
        answer = choose(candidates, problem, floor=None, fitted=fitted)
        assert answer is not None
        index = tuple(problem.assignment(answer.policy))
        for split in SPLITS:
            regret[split][number:] = case.best(split) - case.scores[split][index]
    return regret


def _trial(problem: Problem, case: Case, policy: Policy, number: int) -> Trial:
    index = tuple(problem.assignment(policy))
    measured = case.truth.measure(policy)
    score = float(case.scores["search"][index])
    measurement = Measurement(score, measured.fidelity, details=measured.details)
    return Trial(number, "bench", policy, problem.costs(policy), measurement)
