"""Actor-critic search: an agent decides the bits layer by layer and learns from what the policies measured.

What the two variants share; each is a file of its own. See docs/actor_critic.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

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
Deviation = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_REDRAWS = 8
"""After so many roll-outs in a row that gave nothing new, an unseen neighbour of the last one is taken."""
START, _ROLL_OUT, _BATCHES = range(3)
"""What a generator is for: first weights, noise of a roll-out, batches of an episode."""


@dataclass(frozen=True)
class _Episode:
    """A policy and what the agent saw and did to get it; `None` if it came another way."""

    policy: Policy
    raw: tuple[Floats, Floats] | None = None


class ActorCritic(SearchStrategy):
    """Rolls out the actor with noise, brings the policy within budget, and trains actor and critics on the scores.

    The networks are a function of the seed and of the trials: a resumed search trains them again from the journal and
    goes on bit for bit. No policy comes twice: a roll-out that gives a known one is drawn again.

    The option `variant` says which one: `published` (`actor_critic_published.py`, the default) or `modern`
    (`actor_critic_modern.py`); each has its own options beyond these.

    Args:
        problem: tables, budgets and objective.
        seed: fixes networks, noise and batches.
        features: layer -> feature -> number, what the state says about a layer; without, the tables say it.
        warmup: episodes with random actions.
        noise: standard deviation of the truncated normal noise after them.
        noise_decay: factor on it per episode.
        hidden: units of both hidden layers.
        actor_lr: learning rate of the actor.
        critic_lr: of the critic.
        discount: weight of the next decision's value.
        batch_size: transitions per update.
        replay: episodes that are kept, or what the variant makes of it.
        tau: part of the networks that the target networks take over at each update.
        updates: per transition.
    """

    switching: ClassVar[bool] = False
    """Whether the state shows what switches from the formats decided so far cost."""

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        features: Mapping[str, Mapping[str, float]] | None,
        warmup: int,
        noise: float,
        noise_decay: float,
        hidden: int,
        actor_lr: float,
        critic_lr: float,
        discount: float,
        batch_size: int,
        replay: int,
        tau: float,
        updates: int,
    ) -> None:
        self._problem, self._seed = problem, seed
        self._warmup, self._noise, self._noise_decay = warmup, noise, noise_decay
        self._network: dict[str, Any] = {
            "hidden": hidden,
            "actor_lr": actor_lr,
            "critic_lr": critic_lr,
            "discount": discount,
            "batch_size": batch_size,
            "tau": tau,
        }
        self._updates = updates
        self._decisions = Decisions(problem, features=features, switching=self.switching)
        self._kept = max(1, self._episodes_kept(replay))
        self._agent: DDPG | None = None
        self._count = 0
        self._known: set[str] = set()
        self._open: set[str] = set()
        self._drawn: _Episode | None = None
        self._memory: list[tuple[Floats, Floats, float]] = []
        self._scores: list[float] = []

    @classmethod
    def variants(cls) -> dict[str, type[SearchStrategy]]:
        """By the option `variant`; the first is the default."""
        from haq.search.strategies.actor_critic_modern import ModernActorCritic
        from haq.search.strategies.actor_critic_published import PublishedActorCritic

        return {"published": PublishedActorCritic, "modern": ModernActorCritic} if cls is ActorCritic else {}

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
            raw = self._raw(trial.policy)
            if trial.measurement.ok and self._decisions.all:
                states, actions = raw or self._decisions.of(self._problem.assignment(trial.policy))
                self._learn(states, actions, trial.measurement.score)
            self._known.add(trial.policy.key)
            self._open.discard(trial.policy.key)
            self._count, self._drawn = self._count + 1, None

    def _raw(self, policy: Policy) -> tuple[Floats, Floats] | None:
        """States and actions to learn from for `policy`; `None`: those that lead to it."""
        del policy
        return None

    def _episodes_kept(self, replay: int) -> int:
        """How many episodes the replay memory holds."""
        return replay

    def _within(self, wish: Ints) -> Ints:
        """The assignment within budget that a roll-out comes to."""
        raise NotImplementedError

    def _reward(self, score: float) -> float:
        """Of an episode when it is measured, from its score and those before (`self._scores`)."""
        raise NotImplementedError

    def _rewards(self) -> Floats:
        """Of the episodes in memory, when the agent learns."""
        raise NotImplementedError

    def _trains(self) -> bool:
        """Whether the agent learns after this episode (`self._count` came before it)."""
        raise NotImplementedError

    def _new_agent(self) -> DDPG:
        """The agent, before it has learned."""
        raise NotImplementedError

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

    def _learn(self, states: Floats, actions: Floats, score: float) -> None:
        """Keep an episode and, after the warm-up, train on it and those before."""
        reward = self._reward(score)
        self._scores.append(score)
        self._memory = [*self._memory, (states, actions, reward)][-self._kept :]
        if not self._trains():
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
