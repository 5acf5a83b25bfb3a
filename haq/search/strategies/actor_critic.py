"""Actor-critic search: an agent decides the bits layer by layer and learns from what the policies measured.

The published variant is the search of HAQ (Wang et al., CVPR 2019); the modern one is ours. See docs/actor_critic.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from haq.problem.problem import Problem
from haq.problem.tables import Floats, Ints
from haq.search.strategies.actor_critic_states import Decisions
from haq.search.strategy import SearchStrategy
from haq.solve.solve import list_assignments
from haq.values.policy import Policy
from haq.values.trial import Trial

if TYPE_CHECKING:
    from haq.search.strategies.actor_critic_agent import DDPG

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_REDRAWS = 8
"""After so many roll-outs in a row that gave nothing new, an unseen neighbour of the last one is taken."""
_START, _ROLL_OUT, _BATCHES = range(3)
"""What a generator is for: first weights, noise of a roll-out, batches of an episode."""


@dataclass(frozen=True)
class _Defaults:
    warmup: int
    noise: float
    noise_decay: float
    hidden: int
    actor_lr: float
    discount: float


_DEFAULTS = {
    "published": _Defaults(20, 0.5, 0.99, 300, 1e-4, 1.0),
    "modern": _Defaults(10, 0.3, 0.98, 128, 3e-4, 0.5),
}


@dataclass(frozen=True)
class _Episode:
    """A policy and what the agent saw and did to get it; `None` if it came another way."""

    policy: Policy
    raw: tuple[Floats, Floats] | None = None


class ActorCritic(SearchStrategy):
    """Rolls out the actor with noise, brings the policy within budget, and trains actor and critics on the scores.

    The networks are a function of the seed and of the trials: a resumed search trains them again from the journal and
    goes on bit for bit. No policy comes twice: a roll-out that gives a known one is drawn again. Options left at
    `None` take the variant's value: published / modern.

    Args:
        problem: tables, budgets and objective.
        seed: fixes networks, noise and batches.
        variant: `published`: DDPG, budgets enforced from the last layer to the first, learns from the actions taken.
            `modern`: TD3, budgets by the problem's repair, learns from the policy as repaired, rewards are the ranks
            of the scores, switching costs are part of the state; the integer program's four best policies come first
            unless `warm_start` says otherwise.
        features: layer -> feature -> number, what the state says about a layer; without, the tables say it.
        warmup: episodes with random actions (20 / 10).
        noise: standard deviation of the truncated normal noise after them (0.5 / 0.3).
        noise_decay: factor on it per episode (0.99 / 0.98).
        hidden: units of both hidden layers (300 / 128).
        actor_lr: learning rate of the actor (1e-4 / 3e-4).
        critic_lr: of the critic.
        discount: weight of the next decision's value (1 / 0.5).
        batch_size: transitions per update.
        replay: episodes that are kept.
        tau: part of the networks that the target networks take over at each update.
        updates: per transition.
        baseline_decay: what the moving average of the rewards keeps of its old value (published).
        reward_scale: on a score's difference from the reference (published).
        reference: the `first` score, or the `moving` mean of those before (published).
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        variant: Literal["published", "modern"] = "published",
        features: Mapping[str, Mapping[str, float]] | None = None,
        warmup: Count | None = None,
        noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None,
        noise_decay: Share | None = None,
        hidden: Positive | None = None,
        actor_lr: Rate | None = None,
        critic_lr: Rate = 1e-3,
        discount: Share | None = None,
        batch_size: Positive = 64,
        replay: Positive = 128,
        tau: Share = 0.01,
        updates: Count = 1,
        baseline_decay: Share = 0.5,
        reward_scale: Rate = 0.1,
        reference: Literal["first", "moving"] = "first",
    ) -> None:
        default = _DEFAULTS[variant]
        self._problem, self._seed, self._modern = problem, seed, variant == "modern"
        self._warmup = default.warmup if warmup is None else warmup
        self._noise = default.noise if noise is None else noise
        self._noise_decay = default.noise_decay if noise_decay is None else noise_decay
        self._network: dict[str, Any] = {
            "hidden": default.hidden if hidden is None else hidden,
            "actor_lr": default.actor_lr if actor_lr is None else actor_lr,
            "discount": default.discount if discount is None else discount,
            "critic_lr": critic_lr,
            "batch_size": batch_size,
            "tau": tau,
            "baseline_decay": baseline_decay,
        }
        self._replay, self._updates = replay, updates
        self._reward_scale, self._reference = reward_scale, reference
        self._decisions = Decisions(problem, features=features, switching=self._modern)
        self._agent: DDPG | None = None
        self._count = 0
        self._known: set[str] = set()
        self._open: set[str] = set()
        self._drawn: _Episode | None = None
        self._memory: list[tuple[Floats, Floats, float]] = []
        self._scores: list[float] = []

    @classmethod
    def default_warm_start(cls, options: Mapping[str, Any]) -> tuple[str, int]:
        """The modern variant begins with the integer program's best."""
        return ("ilp", 4) if options.get("variant") == "modern" else ("none", 1)

    def suggest(self, count: int) -> list[Policy]:
        """New policies within budget, one roll-out each; none when a finite space is used up.

        Raises:
            InfeasibleError: no policy within budget was found.
        """
        result: list[Policy] = []
        for _ in range(count):
            episode = self._draw(self._count + len(self._open), self._known | self._open)
            if episode is None:
                break
            self._drawn = None if self._open else episode
            self._open.add(episode.policy.key)
            result.append(episode.policy)
        return result

    def update(self, trials: Sequence[Trial]) -> None:
        """Train on each trial, as if it had been proposed and measured alone."""
        for trial in trials:
            raw = None if self._modern else self._raw(trial.policy)
            if trial.measurement.ok and self._decisions.all:
                states, actions = raw or self._decisions.of(self._problem.assignment(trial.policy))
                self._learn(states, actions, trial.measurement.score)
            self._known.add(trial.policy.key)
            self._open.discard(trial.policy.key)
            self._count, self._drawn = self._count + 1, None

    def _raw(self, policy: Policy) -> tuple[Floats, Floats] | None:
        """What the agent saw and did if its next roll-out is `policy`."""
        episode = self._drawn or self._draw(self._count, self._known)
        return episode.raw if episode is not None and episode.policy == policy else None

    def _rng(self, purpose: int, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, purpose, *numbers])

    def _draw(self, number: int, seen: set[str]) -> _Episode | None:
        """Episode `number`: a policy that is not in `seen`, if there is one."""
        assignment = np.zeros(len(self._problem.groups), dtype=np.int64)
        for attempt in range(_REDRAWS if self._decisions.all else 1):
            wish, *raw = self._decisions.rollout(self._actions(number, attempt))
            assignment = self._within(wish)
            policy = self._problem.policy(assignment)
            if policy.key not in seen:
                return _Episode(policy, (raw[0], raw[1]))
        unseen = _unseen(self._problem, assignment, seen, self._rng(_ROLL_OUT, number, _REDRAWS))
        return None if unseen is None else _Episode(unseen)

    def _actions(self, number: int, attempt: int) -> Callable[[Floats], float]:
        """State -> action in episode `number`: random, later the actor's with noise."""
        rng = self._rng(_ROLL_OUT, number, attempt)
        agent = self._agent
        if number < self._warmup or agent is None:
            return lambda state: float(rng.random())
        deviation = self._noise * self._noise_decay ** (number - self._warmup)
        return lambda state: truncated_normal(agent.act(state), deviation, rng)

    def _within(self, wish: Ints) -> Ints:
        problem = self._problem
        policy = problem.policy(wish)
        if not self._modern:
            tied = bool(problem.tables.respects_ties(wish[None])[0])
            enforced = self._decisions.enforced(wish if tied else problem.assignment(problem.nearest(policy)))
            if enforced is not None:
                return enforced
        return problem.assignment(problem.repair(policy))

    def _learn(self, states: Floats, actions: Floats, score: float) -> None:
        """Keep an episode and, after the warm-up, train on it and those before."""
        reference = 0.0
        if not self._modern:
            reference = float(np.mean(self._scores)) if self._reference == "moving" and self._scores else score
            reference = self._scores[0] if self._reference == "first" and self._scores else reference
        self._scores.append(score)
        self._memory = [*self._memory, (states, actions, self._reward_scale * (score - reference))][-self._replay :]
        if self._count < self._warmup:
            return
        from haq.search.strategies.actor_critic_agent import one_thread

        with one_thread():
            if self._agent is None:
                self._agent = self._new_agent()
            self._agent.learn(
                np.stack([entry[0] for entry in self._memory]),
                np.stack([entry[1] for entry in self._memory]),
                self._rewards(),
                updates=self._updates,
                rng=self._rng(_BATCHES, self._count),
            )

    def _rewards(self) -> Floats:
        """Of the episodes in memory: the scaled differences, or the ranks of the scores from -1 to 1."""
        if not self._modern:
            return np.array([reward for _, _, reward in self._memory])
        levels, rank = np.unique(self._scores[-len(self._memory) :], return_inverse=True)
        ranks: Floats = 2.0 * rank / max(len(levels) - 1, 1) - 1.0
        return ranks

    def _new_agent(self) -> DDPG:
        from haq.search.strategies.actor_critic_agent import DDPG, TD3, Hyperparameters

        agent = TD3 if self._modern else DDPG
        return agent(self._decisions.width, Hyperparameters(**self._network), self._rng(_START))


def truncated_normal(mean: float, deviation: float, rng: np.random.Generator) -> float:
    """A draw from the normal distribution cut off at 0 and 1; `mean` lies between them."""
    while True:
        drawn = float(rng.normal(mean, deviation))
        if 0.0 <= drawn <= 1.0:
            return drawn


def _unseen(problem: Problem, assignment: Ints, seen: set[str], rng: np.random.Generator) -> Policy | None:
    """A policy within budget that is not in `seen`: a neighbour of `assignment`, else any that listing finds."""
    near = problem.near
    _, over, joint = near.price(assignment)
    for move in rng.permutation(np.flatnonzero(over == 0)).tolist():
        policy = problem.policy(near.apply(assignment, move, joint))
        if policy.key not in seen and not problem.violation(policy):
            return policy
    listed = list_assignments(problem, problem.tables.allowed)
    if listed is None:
        return None
    for row in rng.permutation(listed[problem.within(listed)]):
        policy = problem.policy(row)
        if policy.key not in seen:
            return policy
    return None
