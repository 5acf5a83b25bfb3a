from __future__ import annotations

import itertools
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from haq.problem.problem import Problem
from haq.search import STRATEGIES, RandomSearch, check_options
from haq.search.strategies.actor_critic import ActorCritic, truncated_normal
from haq.search.strategies.actor_critic_agent import DDPG, TD3, Batch, Hyperparameters
from haq.search.strategies.actor_critic_modern import ModernActorCritic
from haq.search.strategies.actor_critic_published import PublishedActorCritic
from haq.search.strategies.actor_critic_states import Decisions
from haq.testing import TOYS, chain_document, check_strategy, layer, play
from haq.values.errors import InfeasibleError, InputError
from haq.values.trial import Measurement, Trial

VARIANTS = ("published", "modern")
CLASSES = {"published": PublishedActorCritic, "modern": ModernActorCritic}


def small(problem: Problem, *, variant: str = "published", **options: Any) -> ActorCritic:
    return CLASSES[variant](problem, **{"warmup": 3, "hidden": 16, "batch_size": 16, **options})


def square(layers: int, *, bits: range = range(2, 9), latency: float = 1e9, **parts: Any) -> Problem:
    """`layers` equal layers, each with every pair of bits, latency weight bits x activation bits."""
    choices = {f"w{w}a{a}": (1.0 / (w * a), float(w * a)) for w, a in itertools.product(bits, bits)}
    entries = [layer(f"l{i}", choices) for i in range(layers)]
    budgets = {"latency_ms": latency}
    return Problem.from_doc(
        {"schema_version": 1, "layers": entries, "budgets": budgets, "objective": "sensitivity", **parts}
    )


@pytest.mark.parametrize("variant", ["published", "modern"])
def test_both_variants_pass_the_conformance_checks(variant: str) -> None:
    check_strategy(partial(small, variant=variant))


def test_it_is_registered_and_loading_the_registry_loads_no_torch() -> None:
    assert STRATEGIES["actor_critic"] is ActorCritic
    code = "import sys, haq.search; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("action", "bits"), [(0.0, 2), (0.14, 2), (0.15, 3), (0.5, 5), (0.85, 7), (0.86, 8), (1.0, 8)])
def test_actions_map_to_bits_as_in_haq(action: float, bits: int) -> None:
    # 2 to 8 bits: round(7 a + 1.5), worked out by hand.
    assert Decisions(square(1)).all[0].wish(action) == bits


def test_bits_between_two_choices_go_to_the_nearest_and_then_to_the_higher() -> None:
    choices = {"w2a8": (1.0, 1.0), "w4a8": (1.0, 1.0), "w8a8": (1.0, 1.0)}
    document = {"schema_version": 1, "layers": [layer("a", choices)], "budgets": {}, "objective": "sensitivity"}
    (decision,) = Decisions(Problem.from_doc(document)).all
    everything = np.arange(3)
    assert [int(decision.nearest(everything, wish)[0]) for wish in range(2, 9)] == [0, 1, 1, 1, 2, 2, 2]


def test_a_policy_and_its_actions_are_the_same_thing() -> None:
    problem = Problem.from_doc(chain_document(5))
    decisions = Decisions(problem, switching=True)
    for policy in RandomSearch(problem, seed=0).suggest(5):
        states, actions = decisions.of(problem.assignment(policy))
        replayed = iter(actions.tolist())
        assignment, seen, _ = decisions.rollout(lambda state, replayed=replayed: next(replayed))
        assert problem.policy(assignment) == policy
        np.testing.assert_array_equal(seen, states)


def test_weights_and_activations_are_decided_apart_and_a_fixed_format_not_at_all() -> None:
    choices = {"w4a8": (1.0, 1.0), "w8a8": (1.0, 1.0)}
    both = {**choices, "w4a4": (1.0, 1.0), "w8a4": (1.0, 1.0)}
    layers = [layer("a", both), layer("b", choices), layer("c", {"w8a8": (1.0, 1.0)})]
    document = {"schema_version": 1, "layers": layers, "budgets": {}, "objective": "sensitivity"}
    decisions = Decisions(Problem.from_doc(document)).all
    assert [(d.group, d.weights) for d in decisions] == [(0, True), (0, False), (1, True)]


def haq_loop(strategy: list[list[int]], limit: float) -> list[list[int]]:
    """The loop of HAQ's environment as its code has it, with latency = sum of weight bits x activation bits."""

    def cost() -> float:
        return sum(w * a for w, a in strategy)

    while cost() > limit and any(bits > 2 for pair in strategy for bits in pair):
        for i in range(len(strategy)):
            if strategy[-(i + 1)][1] > 2:
                strategy[-(i + 1)][1] -= 1
            if limit >= cost():
                break
            if strategy[-(i + 1)][0] > 2:
                strategy[-(i + 1)][0] -= 1
            if limit >= cost():
                break
    return strategy


@pytest.mark.parametrize("limit", [20.0, 47.0, 60.0, 111.0, 200.0])
def test_budgets_are_enforced_as_in_haq(limit: float) -> None:
    problem = square(5, latency=limit)
    rng = np.random.default_rng(int(limit))
    for _ in range(10):
        wish = rng.integers(0, 49, 5)
        bits = [[2 + int(c) // 7, 2 + int(c) % 7] for c in wish]
        expected = [7 * (w - 2) + a - 2 for w, a in haq_loop(bits, limit)]
        enforced = Decisions(problem).enforced(wish)
        assert enforced is not None
        assert enforced.tolist() == expected


def test_enforcement_comes_to_an_end_where_lowering_bits_does_not_help() -> None:
    assert Decisions(square(2, latency=7.0)).enforced(np.array([48, 48])) is None


def test_enforcement_steps_tied_activations_together() -> None:
    problem = square(3, latency=170.0, activation_ties=[["l0", "l2"]])
    enforced = Decisions(problem).enforced(np.array([48, 48, 48]))
    assert enforced is not None
    assert problem.within(enforced[None])[0]
    assert [str(p) for p in problem.policy(enforced).values()] == ["w8a7", "w8a8", "w7a7"]


def test_the_state_holds_the_given_features_normalised() -> None:
    features = {"l0": {"kernel": 1.0}, "l1": {"kernel": 3.0}, "l2": {"kernel": 5.0}}
    decisions = Decisions(square(3), features=features)
    states, _ = decisions.of(np.array([48, 0, 0]))
    # kernel, index, weights or activations, previous level.
    expected = [[0, 0, 1, 1], [0, 0, 0, 1], [0.5, 0.5, 1, 1], [0.5, 0.5, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    np.testing.assert_allclose(states, expected)


def test_features_that_leave_out_a_layer_are_refused() -> None:
    with pytest.raises(InputError, match=r"features\.l1: every layer needs the same features \(kernel\)"):
        PublishedActorCritic(square(2), features={"l0": {"kernel": 1.0}})


@pytest.mark.parametrize(("before", "prices"), [(0, [0.0, 1.0]), (1, [1.0, 0.0])])
def test_the_state_shows_the_price_of_a_switch(before: int, prices: list[float]) -> None:
    decisions = Decisions(TOYS["chain"].problem, switching=True)
    states, _ = decisions.of(np.array([before, 0, 0]))
    np.testing.assert_allclose(states[1, -2:], prices)
    np.testing.assert_allclose(states[0, -2:], [0.0, 0.0])


@pytest.mark.parametrize("before", [0, 1])
def test_the_state_shows_the_price_of_a_copy_for_several_readers(before: int) -> None:
    document = dict(TOYS["fan_out"].document)
    choices = {"w8a4": (5.0, 1.0), "w8a8": (1.0, 2.0)}
    document["layers"] = [layer(name, choices) for name in "abc"]
    states, _ = Decisions(Problem.from_doc(document), switching=True).of(np.array([before, 0, 0]))
    expected = [0.0, 1.0] if before == 0 else [1.0, 0.0]
    np.testing.assert_allclose(states[1:, -2:], [expected, expected])


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_after_any_of_30_trials_it_goes_on_bit_for_bit(variant: str) -> None:
    problem = Problem.from_doc(chain_document(2))
    factory = partial(small, variant=variant, batch_size=8, warmup=15)
    whole = play(problem, factory(problem, seed=3), trials=31)
    for kept in range(31):
        resumed = factory(problem, seed=3)
        resumed.update(whole[:kept])
        assert resumed.suggest(1) == [whole[kept].policy], f"after {kept} trials"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_agent_has_the_same_weights(variant: str) -> None:
    problem = Problem.from_doc(chain_document(4, bits=(2, 4, 8)))
    first, second = (small(problem, seed=1, variant=variant) for _ in range(2))
    trials = play(problem, first, trials=8)
    for trial in trials:
        second.update([trial])
    agents = [strategy._agent for strategy in (first, second)]
    weights = [torch.cat([p.flatten() for p in (*a.actor.parameters(), *a.critics.parameters())]) for a in agents]
    assert torch.equal(*weights)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_uses_up_a_finite_space(variant: str) -> None:
    toy = TOYS["knapsack"]
    played = play(toy.problem, small(toy.problem, variant=variant, hidden=8), trials=1000, count=3)
    assert len({trial.policy for trial in played}) == len(played) == toy.policies


def test_a_space_of_one_policy_ends_at_once() -> None:
    strategy = PublishedActorCritic(TOYS["one_policy"].problem, seed=0)
    assert [len(strategy.suggest(5)), len(strategy.suggest(5))] == [1, 0]


def test_no_policy_within_budget_is_an_error() -> None:
    problem = TOYS["knapsack"].problem.with_budgets({"latency_ms": 2.5})
    with pytest.raises(InfeasibleError, match=r"latency_ms 3 \(budget 2\.5\)"):
        PublishedActorCritic(problem, seed=0).suggest(1)


def test_failed_evaluations_teach_nothing_and_stop_nothing() -> None:
    problem = TOYS["knapsack"].problem
    strategy = small(problem, seed=0)
    for number in range(8):
        (policy,) = strategy.suggest(1)
        strategy.update(
            [Trial(number, "rl", policy, problem.costs(policy), Measurement(float("nan"), "ptq", error="x"))]
        )
    assert strategy._agent is None


def test_noise_stays_within_the_actions_and_around_its_mean() -> None:
    rng = np.random.default_rng(0)
    drawn = [truncated_normal(0.5, 0.1, rng) for _ in range(500)] + [
        truncated_normal(0.0, 0.5, rng) for _ in range(500)
    ]
    assert 0 <= min(drawn) <= max(drawn) <= 1
    assert np.mean(drawn[:500]) == pytest.approx(0.5, abs=0.02)
    # Half a normal distribution of deviation 0.5, cut off at 1: mean 0.5 (phi(0) - phi(2)) / (Phi(2) - 0.5) = 0.3614.
    assert np.mean(drawn[500:]) == pytest.approx(0.3614, abs=0.04)


def _batch(width: int, size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    states, following = (torch.rand(size, width, generator=generator) for _ in range(2))
    actions, rewards = (torch.rand(size, 1, generator=generator) for _ in range(2))
    return Batch(states, actions, rewards, following, torch.tensor([[1.0], [1.0], [0.0]]))


def _reference(parameters: list[torch.Tensor], states: torch.Tensor, actions: torch.Tensor | None) -> torch.Tensor:
    """Actor and critic with plain matrix products, parameters in the order of the layers."""
    w = parameters
    if actions is None:
        hidden = torch.relu(torch.relu(states @ w[0].T + w[1]) @ w[2].T + w[3])
        return 1 / (1 + torch.exp(-(hidden @ w[4].T + w[5])))
    hidden = torch.relu(states @ w[0].T + w[1] + actions @ w[2].T + w[3])
    return torch.relu(hidden @ w[4].T + w[5]) @ w[6].T + w[7]


def _adam_step(parameters: list[torch.Tensor], loss: torch.Tensor, rate: float) -> list[torch.Tensor]:
    """The first step of Adam: moments over their bias corrections are the gradient and its square."""
    gradients = torch.autograd.grad(loss, parameters)
    return [
        (p - rate * g / (g.abs() + 1e-8)).detach().requires_grad_() for p, g in zip(parameters, gradients, strict=True)
    ]


def _copied(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().double().clone().requires_grad_() for p in module.parameters()]


def test_one_update_is_ddpg_by_hand() -> None:
    agent = DDPG(5, Hyperparameters(hidden=7, actor_lr=0.01, critic_lr=0.02), np.random.default_rng(1))
    batch = _batch(5, 3)
    actor, critic = _copied(agent.actor), _copied(agent.critics[0])
    states, actions, rewards, following = (
        part.double() for part in (batch.states, batch.actions, batch.rewards, batch.following)
    )
    # At the start the slow copies are the networks; the first moving average is the mean of the batch; discount 1.
    value = _reference(critic, following, _reference(actor, following, None))
    target = (rewards - rewards.mean() + batch.goes_on.double() * value).detach()
    stepped = _adam_step(critic, ((_reference(critic, states, actions) - target) ** 2).mean(), 0.02)
    moved = _adam_step(actor, -_reference(stepped, states, _reference(actor, states, None)).mean(), 0.01)
    agent.update(batch, np.random.default_rng(0))
    for module, slow, before, expected in (
        (agent.critics[0], agent.critics_target[0], critic, stepped),
        (agent.actor, agent.actor_target, actor, moved),
    ):
        for have, have_slow, old, want in zip(module.parameters(), slow.parameters(), before, expected, strict=True):
            torch.testing.assert_close(have.double(), want, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(have_slow.double(), old + 0.01 * (want - old), rtol=1e-4, atol=1e-6)


def test_one_update_is_td3_by_hand() -> None:
    agent = TD3(5, Hyperparameters(hidden=7, critic_lr=0.02, discount=0.5), np.random.default_rng(1))
    batch = _batch(5, 3)
    actor, critics = _copied(agent.actor), [_copied(critic) for critic in agent.critics]
    states, actions, rewards, following = (
        part.double() for part in (batch.states, batch.actions, batch.rewards, batch.following)
    )
    noise = torch.from_numpy(np.random.default_rng(3).normal(0.0, 0.1, (3, 1)).clip(-0.25, 0.25))
    smoothed = (_reference(actor, following, None) + noise).clamp(0, 1)
    lower = torch.minimum(_reference(critics[0], following, smoothed), _reference(critics[1], following, smoothed))
    target = (rewards + 0.5 * batch.goes_on.double() * lower).detach()
    agent.update(batch, np.random.default_rng(3))
    for critic, before in zip(agent.critics, critics, strict=True):
        expected = _adam_step(before, ((_reference(before, states, actions) - target) ** 2).mean(), 0.02)
        for have, want in zip(critic.parameters(), expected, strict=True):
            torch.testing.assert_close(have.double(), want, rtol=1e-4, atol=1e-5)
    # The actor waits for the second update.
    for have, want in zip(agent.actor.parameters(), actor, strict=True):
        assert torch.equal(have.double(), want)
    agent.update(batch, np.random.default_rng(3))
    assert not torch.equal(agent.actor[0].weight.double(), actor[0])


def test_td3_credits_a_transition_so_that_its_value_is_the_final_reward() -> None:
    agent = TD3(5, Hyperparameters(hidden=7, discount=0.25), np.random.default_rng(1))
    credited = agent.credit(np.array([[4.0, 4.0, 4.0]]), np.array([[1.0, 1.0, 0.0]]))
    first, second, last = credited[0]
    assert [first + 0.25 * (second + 0.25 * last), second + 0.25 * last, last] == [4.0, 4.0, 4.0]


def test_the_modern_variant_beats_random_at_100_evaluations() -> None:
    problem = Problem.from_doc(chain_document(8))

    def best(factory: Any, seed: int) -> float:
        return min(trial.costs["sensitivity"] for trial in play(problem, factory(problem, seed=seed), trials=100))

    modern = partial(ModernActorCritic, hidden=16, batch_size=16)
    ours, theirs = [best(modern, seed) for seed in range(3)], [best(RandomSearch, seed) for seed in range(8)]
    # All three before all eight: of 165 equally likely orders the one, p = 0.006 in the rank test.
    assert max(ours) < min(theirs)


def test_learning_leaves_the_threads_and_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    problem = TOYS["knapsack"].problem
    play(problem, small(problem, seed=0), trials=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "sac"}, "search.options.variant = 'sac': unknown; known: published, modern"),
        ({"discount": 1.5}, "less than or equal to 1"),
        ({"variant": "modern", "reward_scale": 5.0}, "reward_scale: no option of ModernActorCritic; it has "),
        ({"variant": "modern", "reference": "moving"}, "reference: no option of ModernActorCritic"),
        ({"variant": "modern", "baseline_decay": 0.1}, "baseline_decay: no option of ModernActorCritic"),
        ({"gamma": 1.0}, "no option of PublishedActorCritic"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_options(ActorCritic, options)


def test_both_variants_take_their_own_options() -> None:
    check_options(ActorCritic, {"variant": "published", "reward_scale": 5.0, "reference": "moving", "replay": 3})
    check_options(ActorCritic, {"variant": "modern", "replay": 3, "noise": 0.0})


@pytest.mark.parametrize(
    ("document", "variant", "episodes"),
    [
        # HAQ's memory: rmsize x layers transitions, two of each layer and episode where weights and activations vary.
        (square(3), "published", 2),
        (square(3, bits=range(2, 9)), "modern", 4),
        (Problem.from_doc(TOYS["knapsack"].document), "published", 4),
    ],
    ids=["two decisions per layer", "modern: episodes", "one decision per layer"],
)
def test_the_replay_memory_is_as_large_as_haqs(document: Problem, variant: str, episodes: int) -> None:
    strategy = small(document, variant=variant, replay=4, warmup=100)
    play(document, strategy, trials=12)
    assert len(strategy._memory) == episodes


def test_the_published_noise_decays() -> None:
    """With a decay of 0 only the first episode after the warm-up is noisy: later ones repeat the actor's choice."""
    problem = square(2)
    first = play(problem, small(problem, noise=0.5, noise_decay=0.0), trials=12)
    second = play(problem, small(problem, noise=0.5, noise_decay=1.0), trials=12)
    assert [t.policy for t in first[:4]] == [t.policy for t in second[:4]]
    assert [t.policy for t in first[5:]] != [t.policy for t in second[5:]]
