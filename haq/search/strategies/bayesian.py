"""Bayesian and evolutionary samplers of Optuna, by ask and tell: `pip install 'haq[bayesian]'`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from haq.problem.problem import Problem
from haq.search.strategies.bayesian_parameters import Parameters
from haq.search.strategies.evolutionary import level_switch
from haq.search.strategies.random_search import RandomSearch
from haq.search.strategy import SearchStrategy
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Trial

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler

_ASKS = 4
"""How often the sampler is asked again when all that its answers lead to is known."""
_NEIGHBOURS = 8
"""How many neighbours of a known answer are tried."""

Sampler = Literal["tpe", "gp", "nsga2"]
Count = Annotated[int, Field(ge=1)]


class Bayesian(SearchStrategy):
    """An Optuna study whose parameters are the weight and activation formats of each decision.

    The sampler's wish is repaired into the budgets and ties before it is proposed, and the study learns the policy as
    repaired, with how far each budget is from being broken as its constraints. All randomness comes from the seed and
    the number of trials seen, so a resumed search goes on as the killed one.

    Args:
        problem: tables, budgets and objective.
        seed: fixes the draws.
        sampler: `tpe` (multivariate, grouped), `gp` (Gaussian process; needs torch and scipy, slower) or `nsga2`.
        startup: random policies before the model is used; the population of `nsga2`.
        ordinal: formats are ordered by their bits; without, they are categories.
        objectives: metrics to minimise beside the score.
        optuna_storage: database URL that the study is mirrored to, for optuna-dashboard: `sqlite:///study.db`.
        optuna_study: its name there; made from the problem, the sampler and the seed when empty.

    Raises:
        InputError: Optuna is missing, an unknown metric among `objectives`, or a storage that cannot be opened.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        sampler: Sampler = "tpe",
        startup: Count = 10,
        ordinal: bool = True,
        objectives: Sequence[str] = (),
        optuna_storage: str = "",
        optuna_study: str = "",
    ) -> None:
        self._problem, self._seed = problem, seed
        self._sampler: Sampler = sampler
        self._startup, self._objectives = startup, tuple(objectives)
        _check_objectives(problem, self._objectives)
        self._parameters = Parameters(problem)
        self._space = _distributions(self._parameters, ordinal)
        self._updates = self._learned = 0
        self._seen: set[str] = set()
        self._others = RandomSearch(problem, seed=seed)
        directions = ["maximize", *["minimize"] * len(self._objectives)]
        with _quiet():
            self._study = _optuna().create_study(directions=directions)
        name = optuna_study or "-".join(["haq", sampler, problem.signature, *self._objectives, str(seed)])
        self._mirror = _open(optuna_storage, name, directions) if optuna_storage else None
        self._mirrored = {trial.user_attrs.get("policy") for trial in self._mirror.trials} if self._mirror else set()

    def suggest(self, count: int) -> list[Policy]:
        """What the sampler asks for, repaired; none when a finite space is used up.

        Raises:
            InfeasibleError: no policy within budget was found.
        """
        rng = np.random.default_rng([self._seed, self._updates])
        result: list[Policy] = []
        with _quiet():
            self._study.sampler = self._new_sampler(int(rng.integers(2**31)))
            wishes: list[Any] = []
            while len(result) < count and (policy := self._fresh(rng, wishes)) is not None:
                self._seen.add(policy.key)
                result.append(policy)
            for wish in wishes:
                self._study.tell(wish, state=_optuna().trial.TrialState.FAIL)
        return result

    def update(self, trials: Sequence[Trial]) -> None:
        """Add the policies as they were measured to the study; a failed one is not proposed again."""
        self._others.update(trials)
        self._updates += len(trials)
        for trial in trials:
            self._seen.add(trial.policy.key)
            if trial.measurement.ok:
                self._learn(trial)

    def _fresh(self, rng: np.random.Generator, wishes: list[Any]) -> Policy | None:
        """The next policy not seen yet; what the sampler was asked is added to `wishes`."""
        for policy in self._candidates(rng, wishes):
            if policy.key not in self._seen:
                return policy
        while remaining := self._others.suggest(1):
            if remaining[0].key not in self._seen:
                return remaining[0]
        return None

    def _candidates(self, rng: np.random.Generator, wishes: list[Any]) -> Iterator[Policy]:
        for _ in range(_ASKS):
            wishes.append(self._study.ask(fixed_distributions=self._space))
            positions = {name: self._position(name, value) for name, value in wishes[-1].params.items()}
            wish = self._problem.policy(self._parameters.assignment(positions))
            policy = self._problem.repair(wish)
            yield policy
            for _ in range(_NEIGHBOURS):
                yield self._problem.policy(level_switch(self._problem, self._problem.assignment(policy), rng))

    def _position(self, name: str, value: Any) -> int:
        return value if isinstance(value, int) else self._parameters.axes[name].index(value)

    def _learn(self, trial: Trial) -> None:
        from optuna.distributions import CategoricalDistribution
        from optuna.trial import create_trial

        positions = self._parameters.positions(self._problem.assignment(trial.policy))
        values = {
            name: self._parameters.axes[name][position] if isinstance(space, CategoricalDistribution) else position
            for (name, position), space in zip(positions.items(), self._space.values(), strict=True)
        }
        costs = self._problem.costs(trial.policy)
        constraints = {m: (costs[m] - bound) / (abs(bound) or 1.0) for m, bound in self._problem.budgets.items()}
        attributes = {"policy": " ".join(f"{name}={precision}" for name, precision in trial.policy.items()), **costs}
        # NSGA-II breeds from the trials that carry its generation number; `tell` would set it, `add_trial` does not.
        generation = {"NSGAIISampler:generation": self._learned // self._startup} if self._sampler == "nsga2" else {}
        frozen = create_trial(
            values=[trial.measurement.score, *(costs[metric] for metric in self._objectives)],
            params=values,
            distributions=self._space,
            user_attrs=attributes,
            system_attrs=generation,
            # A cost within the rounding of its budget is within it.
            constraints={metric: min(excess, 0.0) for metric, excess in constraints.items()},
        )
        self._learned += 1
        with _quiet():
            self._study.add_trial(frozen)
            if self._mirror is not None and attributes["policy"] not in self._mirrored:
                self._mirror.add_trial(frozen)
                self._mirrored.add(attributes["policy"])

    def _new_sampler(self, seed: int) -> BaseSampler:
        samplers = _optuna().samplers
        sampler: BaseSampler
        if self._sampler == "tpe":
            sampler = samplers.TPESampler(seed=seed, n_startup_trials=self._startup, multivariate=True, group=True)
        elif self._sampler == "gp":
            sampler = samplers.GPSampler(seed=seed, n_startup_trials=self._startup, deterministic_objective=True)
        else:
            sampler = genetic = samplers.NSGAIISampler(seed=seed, population_size=self._startup)
            # The parents' order depends on whether they were selected before: select them all, oldest first.
            for generation in range(1, self._learned // self._startup + 1):
                genetic.get_parent_population(self._study, generation)
        return sampler


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError("search.strategy = 'bayesian' needs Optuna: pip install 'haq[bayesian]'") from error
    return optuna


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna announces each study and warns of samplers it calls experimental; the search has its own output."""
    optuna = _optuna()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _check_objectives(problem: Problem, objectives: Sequence[str]) -> None:
    for metric in objectives:
        if metric not in problem.metrics:
            known = ", ".join(problem.metrics)
            raise InputError(f"search.options.objectives: unknown metric {metric!r}; the problem prices {known}")


def _distributions(parameters: Parameters, ordinal: bool) -> dict[str, Any]:
    """Parameter name -> Optuna's distribution over the positions or the names of its values."""
    distributions = _optuna().distributions
    return {
        name: distributions.IntDistribution(0, len(labels) - 1)
        if ordinal and name in parameters.ordered
        else distributions.CategoricalDistribution(labels)
        for name, labels in parameters.axes.items()
    }


def _open(url: str, name: str, directions: Sequence[str]) -> Study:
    """The study to mirror to, new or as an earlier part of the run left it."""
    try:
        with _quiet():
            study: Study = _optuna().create_study(
                storage=url, study_name=name, directions=directions, load_if_exists=True
            )
    except Exception as error:  # whatever the database's driver raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"search.options.optuna_storage = {url!r}: cannot be opened: {reason}; give a URL like sqlite:///study.db"
        ) from error
    return study
