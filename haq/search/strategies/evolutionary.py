"""Evolutionary search: level switches at near-constant budget, crossover by blocks of layers.

A level switch is the mutation of EvoPress (Sieberling et al., arXiv 2410.14649, section 3): one decision is raised and
another lowered, so that every child is as large as its parent. Here the switch is found by pricing all moves, so that
it holds several budgets, ties, switching costs and memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from haq.problem.document import SENSITIVITY
from haq.problem.moves import improve
from haq.problem.problem import Problem
from haq.problem.tables import Bools, Floats, Ints
from haq.search.strategies.random_search import RandomSearch
from haq.search.strategy import SearchStrategy
from haq.values.policy import Policy
from haq.values.trial import Trial

_CLOSEST = 4
"""A switch is completed by one of the moves that come closest to the parent's use of the budgets: a fourth of them."""
_DRAWS = 4
"""A policy of the first population is the best predicted of so many draws."""
_ATTEMPTS = 24
"""After so many children in a row that were known already, the search goes on at random."""

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, le=1)]


class Evolutionary(SearchStrategy):
    """(mu + lambda) search: of all measured policies the `population` best have children, generation by generation.

    A child takes a block of consecutive decisions from a second parent, or is a copy of one, and then gets level
    switches. Parents are chosen by measured scores; the predicted objective only ranks the first draws and breaks ties.
    All randomness comes from the seed and the number of trials seen, so a resumed search goes on as the killed one.

    Args:
        problem: tables, budgets and objective.
        seed: fixes the draws.
        population: parents of a generation; so many policies are measured before the first children.
        offspring: children of a generation.
        mutation_rate: after its first level switch, a child gets each further one with this probability.
        crossover_rate: probability that a child has two parents.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        population: Count = 8,
        offspring: Count = 1,
        mutation_rate: Rate = 0.3,
        crossover_rate: Rate = 0.5,
    ) -> None:
        self._problem, self._seed = problem, seed
        self._population, self._offspring = population, offspring
        self._mutation_rate, self._crossover_rate = mutation_rate, crossover_rate
        self._trials: list[tuple[float, float, Ints]] = []
        self._seen: set[str] = set()
        self._others = RandomSearch(problem, seed=seed)

    def suggest(self, count: int) -> list[Policy]:
        """The first population, then children; none when a finite space is used up.

        Raises:
            InfeasibleError: no policy within budget was found.
        """
        rng = np.random.default_rng([self._seed, len(self._trials)])
        result: list[Policy] = []
        while len(result) < count:
            fresh = (policy for policy in self._candidates(rng) if policy.key not in self._seen)
            policy = next(fresh, None)
            if policy is None:
                policy = next(iter(self._others.suggest(1)), None)
                if policy is None:
                    break
                if policy.key in self._seen:
                    continue
            self._seen.add(policy.key)
            result.append(policy)
        return result

    def update(self, trials: Sequence[Trial]) -> None:
        """Take in scores; a failed policy counts as worse than any other."""
        self._others.update(trials)
        for trial in trials:
            self._seen.add(trial.policy.key)
            loss = -trial.measurement.score if trial.measurement.ok else np.inf
            predicted = self._problem.objective_value(trial.policy)
            self._trials.append((loss, predicted, self._problem.assignment(trial.policy)))

    def _candidates(self, rng: np.random.Generator) -> Iterator[Policy]:
        """What may be proposed next, in order of preference; among them may be policies that were proposed before."""
        parents = self._parents()
        for attempt in range(_ATTEMPTS):
            if not parents or len(self._seen) < self._population:
                yield self._problem.policy(self._draw(rng))
            else:
                yield self._problem.policy(self._child(parents, rng, extra=attempt // 8))

    def _parents(self) -> list[Ints]:
        """The best of all trials up to the end of the last whole generation."""
        bred = max(len(self._trials) - self._population, 0)
        known = self._trials[: len(self._trials) - bred % self._offspring]
        return [assignment for _, _, assignment in sorted(known, key=lambda entry: entry[:2])[: self._population]]

    def _draw(self, rng: np.random.Generator) -> Ints:
        """Nothing is measured yet: the best predicted of some random policies, each a local optimum of the tables."""
        problem, tables = self._problem, self._problem.tables
        wishes = [problem.policy(rng.integers(tables.sizes)) for _ in range(_DRAWS)]
        drawn = [improve(problem.near, problem.assignment(problem.repair(wish))) for wish in wishes]
        return min(drawn, key=lambda row: float(tables.total(problem.objective, row[None])[0]))

    def _child(self, parents: Sequence[Ints], rng: np.random.Generator, *, extra: int) -> Ints:
        """Blocks of two parents, or a copy of one, with one level switch, `extra` ones, and further ones by chance."""
        child = parents[int(rng.integers(len(parents)))].copy()
        if len(parents) > 1 and rng.random() < self._crossover_rate:
            first, last = np.sort(rng.integers(len(child) + 1, size=2))
            child[first:last] = parents[int(rng.integers(len(parents)))][first:last]
            if not self._problem.within(child[None])[0]:
                child = self._problem.assignment(self._problem.repair(self._problem.policy(child)))
        child = level_switch(self._problem, child, rng)
        for further in range(len(child)):
            if further >= extra and rng.random() >= self._mutation_rate:
                break
            child = level_switch(self._problem, child, rng)
        return child


def level_switch(problem: Problem, assignment: Ints, rng: np.random.Generator) -> Ints:
    """Change one decision at random and make up for it by another, so that the budgets are used as before.

    A change that uses more of the budgets and still fits is left alone. The result is within every budget if
    `assignment` is.
    """
    near = problem.near
    _, over, joint = near.price(assignment)
    moves = np.flatnonzero(np.isfinite(over))
    if not len(moves):
        return assignment
    move = int(rng.choice(moves))
    changed = near.apply(assignment, move, joint)
    before = float(_usage(problem, assignment[None])[0])
    if over[move] == 0 and problem.within(changed[None])[0] and _usage(problem, changed[None])[0] >= before:
        return changed
    following, usage = _fitting(problem, changed, keep=changed != assignment)
    if not len(following):
        return problem.assignment(problem.repair(problem.policy(changed)))
    order = np.argsort(np.abs(usage - before), kind="stable")
    nearest = order[: max(len(order) // _CLOSEST, 1)]
    result: Ints = following[rng.choice(nearest)]
    return result


def _usage(problem: Problem, assignments: Ints) -> Floats:
    """How much of the budgets rows of `[N, G]` use, summed over metrics; a bound on the loss is none to use up."""
    result = np.zeros(len(assignments))
    for metric, bound in problem.budgets.items():
        if metric != SENSITIVITY:
            result += problem.tables.total(metric, assignments) / (abs(bound) or 1.0)
    return result


def _fitting(problem: Problem, assignment: Ints, *, keep: Bools) -> tuple[Ints, Floats]:
    """The assignments within budget that are one move away and leave the `keep` decisions, and their usage."""
    near = problem.near
    _, over, joint = near.price(assignment)
    rows = [near.apply(assignment, int(move), joint) for move in np.flatnonzero(over == 0)]
    following = np.array(rows, dtype=np.int64).reshape(-1, len(assignment))
    following = following[(following[:, keep] == assignment[keep]).all(axis=1)]
    following = following[problem.within(following)]
    return following, _usage(problem, following)
