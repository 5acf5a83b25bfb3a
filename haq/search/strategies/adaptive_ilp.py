"""The exact search that learns: solve, measure, refit the predicted loss to what was measured, solve again."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from haq.problem.document import SENSITIVITY
from haq.problem.problem import Problem
from haq.problem.tables import Floats, Ints
from haq.search.strategy import SearchStrategy
from haq.search.surrogate import Design, Fit, Terms, fit_loss, total
from haq.solve.infeasible import infeasible
from haq.solve.settings import Gap, Seconds, Solver, SolverSettings
from haq.solve.solve import list_assignments, solve
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Trial

AtLeastOne = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class AdaptiveILP(SearchStrategy):
    """Proposes the exact optimum of a predicted loss that it refits to every measurement.

    The first proposal is that of `ilp`. Then layer terms and pair terms are fitted (`haq.search.surrogate`), the
    integer program gives the best policies by the fit and the optima of draws from its uncertainty (Thompson sampling),
    and that of the greatest expected improvement is proposed. Budgets, ties, switching and memory stay exact.

    Args:
        problem: tables, budgets and objective; its sensitivities are the prior.
        seed: fixes the draws.
        target: `score`, what the evaluator maximises (where it reports a loss, the score is fitted as a function of the
            loss plus terms of its own), or `loss` alone.
        candidates: how many of the best policies by the fit are considered; where they are too many to list, these are
            the best one and the neighbours within budget of it and of the best one measured.
        samples: how many optima of draws besides.
        interactions: how many of the strongest pair terms the integer program has, where policies are too many to list;
            the choice among what it gives counts all.
        gap: relative gap to the optimum at which a solve may stop.
        time_limit: seconds for each solve.
        solver: `auto`, `highs` or `cbc`.

    Raises:
        InputError: the objective is not the predicted loss, or the predicted loss has a budget.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        target: Literal["score", "loss"] = "score",
        candidates: AtLeastOne = 16,
        samples: Count = 4,
        interactions: Count = 8,
        gap: Gap = 0.0,
        time_limit: Seconds | None = None,
        solver: Solver = "auto",
    ) -> None:
        self.check(problem.objective, problem.budgets)
        self._solving = SolverSettings(gap, time_limit, solver)
        self._problem, self._seed, self._target = problem, seed, target
        self._candidates, self._samples, self._interactions = candidates, samples, interactions
        self._design = Design(problem)
        listed = list_assignments(problem, problem.tables.allowed)
        self._listed = None if listed is None else listed[problem.within(listed)]
        self._seen: set[bytes] = set()
        self._rows: list[Ints] = []
        self._scores: list[float] = []
        self._losses: list[float] = []

    @classmethod
    def check(cls, objective: str, budgets: Collection[str]) -> None:
        """Refuse another objective than the predicted loss, and a budget on it."""
        if objective != SENSITIVITY or SENSITIVITY in budgets:
            raise InputError(
                "search.strategy = 'adaptive_ilp' relearns the predicted loss: it needs objective = 'sensitivity' and "
                "no budget on it; use 'ilp' otherwise"
            )

    def suggest(self, count: int) -> list[Policy]:
        """The policies of greatest expected improvement; none when all within budget were proposed.

        Raises:
            InfeasibleError: nothing is within budget.
        """
        result: list[Policy] = []
        while len(result) < count and (row := self._next()) is not None:
            self._seen.add(row.tobytes())
            result.append(self._problem.policy(row))
        return result

    def update(self, trials: Sequence[Trial]) -> None:
        """Learn what these measured; a failed one is only never proposed again."""
        for trial in trials:
            row = self._problem.assignment(trial.policy)
            self._seen.add(row.tobytes())
            if trial.measurement.ok:
                self._rows.append(row)
                self._scores.append(trial.measurement.score)
                self._losses.append(trial.measurement.details.get("loss", math.nan))

    def _next(self) -> Ints | None:
        if not self._rows:
            found = self._best(self._problem, 1)
            if not found and not self._seen:
                raise infeasible(self._problem, self._solving)
            return found[0] if found else None
        fits, prior = self._fits(), self._design.prior
        mean = total(prior, (fit.terms() for fit in fits))
        found = self._promising(mean)
        rng = np.random.default_rng([self._seed, len(self._seen)])
        for _ in range(self._samples):
            found += self._best(self._refitted(total(prior, (fit.draw(rng) for fit in fits))), 1)
        if not found:
            return None
        rows = np.unique(np.array(found), axis=0)
        spread = np.sqrt(sum(fit.deviation(rows) ** 2 for fit in fits))
        best: Ints = rows[int(_improvement(fits[-1].best - self._design.values(mean, rows), spread).argmax())]
        return best

    def _fits(self) -> list[Fit]:
        """The fit of the loss; with the target `score`, and of what of the score the loss does not say."""
        rows, scores, losses = np.array(self._rows), np.array(self._scores), np.array(self._losses)
        if not np.isfinite(losses).all():
            return [Fit(self._design, rows, -scores)]
        first = fit_loss(self._design, rows, losses)
        return [first] if self._target == "loss" else [first, Fit(self._design, rows, -scores, base=first.standardized)]

    def _refitted(self, terms: Terms) -> Problem:
        """The problem with these coefficients; of the pair terms, if policies cannot be listed, the strongest."""
        pairs = [(g, h, m) for (g, h), m in zip(self._design.pairs, terms.pairs, strict=True) if np.ptp(m) > 0]
        if self._listed is None:
            pairs = sorted(pairs, key=lambda entry: -float(np.ptp(entry[2])))[: self._interactions]
        return self._problem.with_sensitivity(terms.unary, pairs)

    def _promising(self, terms: Terms) -> list[Ints]:
        if self._listed is not None:
            return self._best(self._refitted(terms), self._candidates)
        found = self._best(self._refitted(terms), 1)
        known = self._rows[int(np.argmax(self._scores))]
        around = [row for center in (*found, known) for row in self._around(center)]
        around.sort(key=lambda row: float(self._design.values(terms, row[None])[0]))
        return found + around[: self._candidates]

    def _around(self, center: Ints) -> list[Ints]:
        """The assignments within budget one move away that were not seen yet."""
        near = self._problem.near
        _, over, joint = near.price(center)
        rows = [near.apply(center, int(move), joint) for move in np.flatnonzero(over == 0)]
        return [r for r in rows if r.tobytes() not in self._seen and self._problem.within(r[None])[0]]

    def _best(self, problem: Problem, count: int) -> list[Ints]:
        """The `count` best assignments not seen yet: by the exact solver, in a small space from a list made once."""
        if self._listed is None:
            return list(solve(problem, top=count, excluded=frozenset(self._seen), **self._solving.keywords).assignments)
        values = problem.tables.total(SENSITIVITY, self._listed)
        order = np.argsort(values, kind="stable")[: count + len(self._seen)]
        return [row for row in self._listed[order] if row.tobytes() not in self._seen][:count]


def _improvement(gain: Floats, spread: Floats) -> Floats:
    """Expected improvement by normal variables of mean `gain` and standard deviation `spread` over the best known."""
    z = gain / spread
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])
    result: Floats = gain * below + spread * density
    return result
