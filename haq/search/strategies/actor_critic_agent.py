"""Deterministic policy gradients: DDPG as HAQ uses it (Lillicrap et al., 2016), and TD3 (Fujimoto et al., 2018).

Everything random comes in as a numpy generator: the same generators and data give the same networks, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from haq.problem.tables import Floats


@dataclass(frozen=True)
class Hyperparameters:
    """Of the agent. The defaults are HAQ's.

    Attributes:
        hidden: units of both hidden layers.
        actor_lr: learning rate of the actor (Adam).
        critic_lr: of the critics (Adam).
        discount: weight of the next decision's value.
        tau: part of the networks that the target networks take over at each update.
        batch_size: transitions per update.
        baseline_decay: part of its old value that the reward's moving average keeps.
    """

    hidden: int = 300
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    discount: float = 1.0
    tau: float = 0.01
    batch_size: int = 64
    baseline_decay: float = 0.5


@dataclass(frozen=True)
class Batch:
    """Transitions: states `[B, width]`, actions `[B, 1]`, rewards `[B, 1]`, next states, and 0 where there is none."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    following: Tensor
    goes_on: Tensor


class Critic(nn.Module):
    """The value of an action in a state: relu(fc(s) + fc(a)), a hidden layer, a number."""

    def __init__(self, width: int, hidden: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.state, self.action = linear(width, hidden, rng), linear(1, hidden, rng)
        self.hidden, self.value = linear(hidden, hidden, rng), linear(hidden, 1, rng)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        summed = torch.relu(self.state(states) + self.action(actions))
        result: Tensor = self.value(torch.relu(self.hidden(summed)))
        return result


class DDPG:
    """An actor, a critic and their slow copies.

    Args:
        width: numbers in a state.
        parameters: learning rates and the like.
        rng: draws the first weights.
    """

    critics_count = 1

    def __init__(self, width: int, parameters: Hyperparameters, rng: np.random.Generator) -> None:
        hidden = parameters.hidden
        self.parameters = parameters
        self.actor = nn.Sequential(
            linear(width, hidden, rng), nn.ReLU(), linear(hidden, hidden, rng), nn.ReLU(), linear(hidden, 1, rng),
            nn.Sigmoid(),
        )  # fmt: skip
        self.critics = nn.ModuleList([Critic(width, hidden, rng) for _ in range(self.critics_count)])
        self.actor_target, self.critics_target = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self._actor_adam = torch.optim.Adam(self.actor.parameters(), lr=parameters.actor_lr, fused=True)
        self._critic_adam = torch.optim.Adam(self.critics.parameters(), lr=parameters.critic_lr, fused=True)
        self._baseline: float | None = None

    def act(self, state: Floats) -> float:
        """The actor's action in a state `[width]`."""
        with torch.no_grad():
            return float(self.actor(_tensor(state[None])))

    def learn(
        self, states: Floats, actions: Floats, rewards: Floats, *, updates: int, rng: np.random.Generator
    ) -> None:
        """Go through the newest of the episodes, `updates` updates at each of its transitions, as it comes in.

        Args:
            states: of all episodes kept, oldest first, `[E, T, width]`.
            actions: `[E, T]`.
            rewards: of each episode, `[E]`; every transition of an episode is credited with it.
            updates: per transition.
            rng: draws the batches.
        """
        episodes, length, width = states.shape
        following = np.concatenate([states[:, 1:], np.zeros((episodes, 1, width))], axis=1)
        goes_on = np.ones((episodes, length))
        goes_on[:, -1] = 0.0
        credited = self.credit(np.repeat(rewards[:, None], length, axis=1), goes_on)
        data = [
            _tensor(part.reshape(episodes * length, -1)) for part in (states, actions, credited, following, goes_on)
        ]
        size = self.parameters.batch_size
        for known in range((episodes - 1) * length + 1, episodes * length + 1):
            for _ in range(updates):
                rows = torch.from_numpy(rng.choice(known, size, replace=known < size))
                self.update(Batch(*(part[rows] for part in data)), rng)

    def credit(self, rewards: Floats, goes_on: Floats) -> Floats:
        """The reward of each transition, from that of its episode: the whole of it (HAQ)."""
        return rewards

    def update(self, batch: Batch, rng: np.random.Generator) -> None:
        """One step of the critic and one of the actor, on rewards less their moving average."""
        mean, decay = float(batch.rewards.mean()), self.parameters.baseline_decay
        self._baseline = mean if self._baseline is None else decay * self._baseline + (1 - decay) * mean
        with torch.no_grad():
            value = self.critics_target[0](batch.following, self.actor_target(batch.following))
            target = batch.rewards - self._baseline + self.parameters.discount * batch.goes_on * value
        self._fit_critics(batch, target)
        self._improve_actor(batch)
        self._follow()

    def _fit_critics(self, batch: Batch, target: Tensor) -> None:
        losses = [nn.functional.mse_loss(critic(batch.states, batch.actions), target) for critic in self.critics]
        _descend(self._critic_adam, torch.stack(losses).sum())

    def _improve_actor(self, batch: Batch) -> None:
        _descend(self._actor_adam, -self.critics[0](batch.states, self.actor(batch.states)).mean())

    def _follow(self) -> None:
        """Move the slow copies by `tau` towards the networks."""
        tau = self.parameters.tau
        with torch.no_grad():
            for slow, fast in ((self.actor_target, self.actor), (self.critics_target, self.critics)):
                torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), tau)


class TD3(DDPG):
    """Twin critics, smoothed target actions, an actor updated every second time.

    A transition before the last is credited with a part (1 - discount) of its episode's reward, so that every value is
    an estimate of the final reward, whatever the discount.
    """

    critics_count = 2
    _SMOOTHING, _CLIP, _DELAY = 0.1, 0.25, 2

    def __init__(self, width: int, parameters: Hyperparameters, rng: np.random.Generator) -> None:
        super().__init__(width, parameters, rng)
        self._updates = 0

    def credit(self, rewards: Floats, goes_on: Floats) -> Floats:
        result: Floats = rewards * (1.0 - self.parameters.discount * goes_on)
        return result

    def update(self, batch: Batch, rng: np.random.Generator) -> None:
        """One step of both critics towards the lower of their targets; every second time one of the actor."""
        noise = np.clip(rng.normal(0.0, self._SMOOTHING, tuple(batch.actions.shape)), -self._CLIP, self._CLIP)
        with torch.no_grad():
            action = (self.actor_target(batch.following) + _tensor(noise)).clamp(0.0, 1.0)
            value = torch.minimum(*(critic(batch.following, action) for critic in self.critics_target))
            target = batch.rewards + self.parameters.discount * batch.goes_on * value
        self._fit_critics(batch, target)
        self._updates += 1
        if self._updates % self._DELAY == 0:
            self._improve_actor(batch)
            self._follow()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: such small networks gain nothing from more, and sums keep their order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def linear(inputs: int, outputs: int, rng: np.random.Generator) -> nn.Linear:
    """A layer with weights as torch draws them, but from `rng`: uniform within 1 / sqrt(inputs)."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    bound = inputs**-0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(_tensor(rng.uniform(-bound, bound, tuple(parameter.shape))))
    return layer


def _descend(optimizer: torch.optim.Adam, loss: Tensor) -> None:
    # Gradients of this optimizer's networks alone: the actor's step needs none of the critic's weights.
    parameters = optimizer.param_groups[0]["params"]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


def _tensor(values: Floats) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
