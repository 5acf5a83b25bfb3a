"""The search of HAQ (Wang et al., CVPR 2019) as published: DDPG, budgets enforced from the last layer to the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from haq.problem.problem import Problem
from haq.problem.tables import Floats, Ints
from haq.search.strategies.actor_critic import START, ActorCritic, Count, Deviation, Positive, Rate, Share
from haq.values.policy import Policy

if TYPE_CHECKING:
    from haq.search.strategies.actor_critic_agent import DDPG


class PublishedActorCritic(ActorCritic):
    """Learns from the actions taken; the reward is the score's difference from a reference, times `reward_scale`.

    Args:
        problem: tables, budgets and objective.
        seed: fixes networks, noise and batches.
        features: see `ActorCritic`, also for those that follow.
        warmup: episodes with random actions.
        noise: standard deviation of the exploration noise.
        noise_decay: factor on it per episode.
        hidden: units of both hidden layers.
        actor_lr: learning rate of the actor.
        critic_lr: of the critic.
        discount: weight of the next decision's value.
        batch_size: transitions per update.
        replay: transitions kept, per decision group of the network: HAQ's memory holds `rmsize` x layers transitions,
            that is 64 episodes where each layer decides weights and activations.
        tau: part that the target networks take over.
        updates: per transition.
        baseline_decay: what the moving average of the rewards keeps of its old value.
        reward_scale: on a score's difference from the reference.
        reference: the `first` score, or the `moving` mean of those before.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        features: Mapping[str, Mapping[str, float]] | None = None,
        warmup: Count = 20,
        noise: Deviation = 0.5,
        noise_decay: Share = 0.99,
        hidden: Positive = 300,
        actor_lr: Rate = 1e-4,
        critic_lr: Rate = 1e-3,
        discount: Share = 1.0,
        batch_size: Positive = 64,
        replay: Positive = 128,
        tau: Share = 0.01,
        updates: Count = 1,
        baseline_decay: Share = 0.5,
        reward_scale: Rate = 0.1,
        reference: Literal["first", "moving"] = "first",
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
        self._network["baseline_decay"] = baseline_decay
        self._reward_scale, self._reference = reward_scale, reference

    def _episodes_kept(self, replay: int) -> int:
        groups = len({decision.group for decision in self._decisions.all})
        return replay * groups // max(len(self._decisions.all), 1)

    def _raw(self, policy: Policy) -> tuple[Floats, Floats] | None:
        """What the agent saw and did if its next roll-out is `policy`."""
        episode = self._drawn or self._draw(self._count, self._known)
        return episode.raw if episode is not None and episode.policy == policy else None

    def _within(self, wish: Ints) -> Ints:
        problem = self._problem
        policy = problem.policy(wish)
        tied = bool(problem.tables.respects_ties(wish[None])[0])
        enforced = self._decisions.enforced(wish if tied else problem.assignment(problem.nearest(policy)))
        return problem.assignment(problem.repair(policy)) if enforced is None else enforced

    def _reward(self, score: float) -> float:
        before = self._scores or [score]
        reference = float(np.mean(before)) if self._reference == "moving" else before[0]
        return self._reward_scale * (score - reference)

    def _rewards(self) -> Floats:
        return np.array([reward for _, _, reward in self._memory])

    def _trains(self) -> bool:
        # rl_quantize.py: `if episode > args.warmup`
        return self._count > self._warmup

    def _new_agent(self) -> DDPG:
        from haq.search.strategies.actor_critic_agent import DDPG, Hyperparameters

        return DDPG(self._decisions.width, Hyperparameters(**self._network), self._rng(START))
