"""Our actor-critic: TD3, budgets by the problem's repair, rewards by rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from haq.problem.problem import Problem
from haq.problem.tables import Floats, Ints
from haq.search.strategies.actor_critic import START, ActorCritic, Count, Deviation, Positive, Rate, Share

if TYPE_CHECKING:
    from haq.search.strategies.actor_critic_agent import DDPG


class ModernActorCritic(ActorCritic):
    """Learns from the policy as repaired; switching costs are part of the state; rewards are the ranks of the scores.

    The integer program's four best policies come first unless `warm_start` says otherwise.

    Args:
        problem: tables, budgets and objective.
        seed: fixes networks, noise and batches.
        features: see `ActorCritic`, also for those that follow.
        warmup: episodes with random actions.
        noise: standard deviation of the exploration noise.
        noise_decay: factor on it per episode.
        hidden: units of both hidden layers.
        actor_lr: learning rate of the actor.
        critic_lr: of the critics.
        discount: weight of the next decision's value.
        batch_size: transitions per update.
        replay: episodes that are kept.
        tau: part that the target networks take over.
        updates: per transition.
    """

    switching = True

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        features: Mapping[str, Mapping[str, float]] | None = None,
        warmup: Count = 10,
        noise: Deviation = 0.3,
        noise_decay: Share = 0.98,
        hidden: Positive = 128,
        actor_lr: Rate = 3e-4,
        critic_lr: Rate = 1e-3,
        discount: Share = 0.5,
        batch_size: Positive = 64,
        replay: Positive = 128,
        tau: Share = 0.01,
        updates: Count = 1,
    ) -> None:
        super().__init__(
            problem,
            seed=seed,
            features=features,
            warmup=warmup,
            noise=noise,
            noise_decay=noise_decay,
            hidden=hidden,
            actor_lr=actor_lr,
            critic_lr=critic_lr,
            discount=discount,
            batch_size=batch_size,
            replay=replay,
            tau=tau,
            updates=updates,
        )

    @classmethod
    def default_warm_start(cls, options: Mapping[str, Any]) -> tuple[str, int]:
        """The integer program's best."""
        del options
        return "ilp", 4

    def _within(self, wish: Ints) -> Ints:
        return self._problem.assignment(self._problem.repair(self._problem.policy(wish)))

    def _reward(self, score: float) -> float:
        return score

    def _rewards(self) -> Floats:
        """The ranks of the scores in memory, from -1 to 1."""
        levels, rank = np.unique([reward for _, _, reward in self._memory], return_inverse=True)
        ranks: Floats = 2.0 * rank / max(len(levels) - 1, 1) - 1.0
        return ranks

    def _trains(self) -> bool:
        return self._count >= self._warmup

    def _new_agent(self) -> DDPG:
        from haq.search.strategies.actor_critic_agent import TD3, Hyperparameters

        return TD3(self._decisions.width, Hyperparameters(**self._network), self._rng(START))
