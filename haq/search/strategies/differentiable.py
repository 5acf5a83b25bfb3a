"""Differentiable search: the formats of each layer are mixed, and what each contributes is learned by gradient.

Per-layer logits with Gumbel-softmax as in DNAS (Wu et al., arXiv 1812.00090); each layer computes once, with the
mixture of its quantized weights on the mixture of its quantized inputs, as in EdMIPS (Cai and Vasconcelos, arXiv
2004.05795).
The model comes in as a function; this file sees tables, logits and derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from haq.problem.document import SENSITIVITY
from haq.problem.problem import Problem
from haq.problem.tables import Floats, Ints
from haq.search.strategy import SearchStrategy
from haq.solve.infeasible import infeasible
from haq.solve.settings import Gap, Seconds, Solver, SolverSettings
from haq.solve.solve import solve
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Trial

MixedModel = Callable[[Mapping[str, Floats], int, float], tuple[float, dict[str, Floats]]]
"""`(mixture, step, weight_lr)` -> the loss on the step's batch if each layer mixes its choices in these parts, and the
derivative by each part; with a `weight_lr` above 0 the model's own weights descend, too."""

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_DECAY, _SQUARES, _TINY = 0.9, 0.999, 1e-8
"""Adam's (Kingma and Ba, arXiv 1412.6980)."""


class Differentiable(SearchStrategy):
    """Learns logits of every layer's choices by gradient, then proposes the policies of greatest likelihood in budget.

    The training minimises the loss of the mixed model plus, for each budget, a multiplier times the expected cost in
    parts of the budget. The multipliers rise while the drawn policy is over budget and fall below it (dual ascent).
    The expected cost has the derivative E[cost with this choice, all others as drawn], from the tables: switching and
    memory count like all else, whatever their form. Then the exact solver finds the policies within budget whose
    choices have the least sum of -log(probability), ties included; measurements change nothing of that.

    Needs the model, so only `haq search` runs it; a resumed search trains anew, to the same logits.

    Args:
        problem: tables, budgets and objective.
        seed: fixes the noise.
        model: gives losses and derivatives; `haq search` puts it in.
        steps: batches of the training.
        learning_rate: of the logits (Adam).
        weight_lr: of the model's weights (SGD, straight-through); 0: frozen. They are the training's own, policies are
            measured from the float weights.
        temperature: of the Gumbel-softmax at the start; it falls to a tenth of that, exponentially.
        penalty: how much a multiplier rises per step and part of the budget, in units of the loss.
        gap: relative gap to the optimum at which a solve may stop.
        time_limit: seconds for each solve.
        solver: `auto`, `highs` or `cbc`.

    Raises:
        InputError: no model, or the objective is not the loss.
    """

    needs_model = True

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        model: MixedModel | None = None,
        steps: Count = 200,
        learning_rate: Rate = 0.2,
        weight_lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0,
        temperature: Rate = 1.0,
        penalty: Rate = 0.1,
        gap: Gap = 0.0,
        time_limit: Seconds | None = None,
        solver: Solver = "auto",
    ) -> None:
        if model is None:
            raise InputError("strategy 'differentiable' trains the model, and a table has none: use it in haq search")
        self.check(problem.objective, problem.budgets)
        self._solving = SolverSettings(gap, time_limit, solver)
        self._problem, self._seed, self._model = problem, seed, model
        self._steps, self._learning_rate, self._weight_lr = steps, learning_rate, weight_lr
        self._temperature, self._penalty = temperature, penalty
        self._learned: Problem | None = None
        self._seen: set[bytes] = set()

    @classmethod
    def check(cls, objective: str, budgets: Collection[str]) -> None:
        """Refuse another objective than the loss, and a budget on the predicted one."""
        if objective != SENSITIVITY or SENSITIVITY in budgets:
            raise InputError(
                "search.strategy = 'differentiable' minimises the loss itself: it needs objective = 'sensitivity' and "
                "no budget on it; use 'ilp' otherwise"
            )

    def suggest(self, count: int) -> list[Policy]:
        """The likeliest policies within budget not proposed or measured yet; trains before the first.

        Raises:
            InfeasibleError: nothing is within budget.
        """
        if self._learned is None:
            logits = self.logits()
            likely = logits - _per_group(np.logaddexp.reduceat, logits, self._problem)
            self._learned = self._problem.with_sensitivity(-likely)
        solution = solve(self._learned, top=count, excluded=frozenset(self._seen), **self._solving.keywords)
        if solution.status == "infeasible" and not self._seen:
            raise infeasible(self._problem, self._solving)
        self._seen.update(assignment.tobytes() for assignment in solution.assignments)
        return [self._problem.policy(assignment) for assignment in solution.assignments]

    def update(self, trials: Sequence[Trial]) -> None:
        """Never propose these again."""
        self._seen.update(self._problem.assignment(trial.policy).tobytes() for trial in trials)

    def logits(self) -> Floats:
        """Train: one logit per variable of the tables."""
        problem, rng = self._problem, np.random.default_rng(self._seed)
        logits = np.zeros(problem.tables.start[-1])
        mean, square = np.zeros_like(logits), np.zeros_like(logits)
        multipliers = dict.fromkeys(problem.budgets, 0.0)
        for step in range(self._steps):
            temperature = self._temperature * 0.1 ** (step / self._steps)
            mixed = _softmax((logits + rng.gumbel(size=len(logits))) / temperature, problem)
            slope = self._loss_slope(mixed, step) + self._cost_slope(mixed, multipliers)
            slope = mixed * (slope - _per_group(np.add.reduceat, mixed * slope, problem)) / temperature
            mean = _DECAY * mean + (1 - _DECAY) * slope
            square = _SQUARES * square + (1 - _SQUARES) * slope**2
            unbiased = mean / (1 - _DECAY ** (step + 1)), square / (1 - _SQUARES ** (step + 1))
            logits = logits - self._learning_rate * unbiased[0] / (np.sqrt(unbiased[1]) + _TINY)
        return logits

    def _loss_slope(self, mixed: Floats, step: int) -> Floats:
        """Derivative of the loss by each variable's part in the mixture; tied layers have the same mixture."""
        tables, groups = self._problem.tables, self._problem.groups
        parts = np.split(mixed, tables.start[1:-1])
        mixture = {layer: part for members, part in zip(groups, parts, strict=True) for layer in members}
        _, slopes = self._model(mixture, step, self._weight_lr)
        return np.concatenate([np.sum([slopes[layer] for layer in members], axis=0) for members in groups])

    def _cost_slope(self, mixed: Floats, multipliers: dict[str, float]) -> Floats:
        """Multipliers times the cost of each choice, all others as drawn; then the multipliers follow the draw."""
        problem = self._problem
        drawn = np.array([int(part.argmax()) for part in np.split(mixed, problem.tables.start[1:-1])])
        rows = _one_changed(drawn, problem)
        slope = np.zeros(len(mixed))
        for metric, bound in problem.budgets.items():
            scale = abs(bound) or 1.0
            slope += multipliers[metric] * problem.tables.total(metric, rows) / scale
            over = (float(problem.tables.total(metric, drawn[None])[0]) - bound) / scale
            multipliers[metric] = max(0.0, multipliers[metric] + self._penalty * over)
        return slope


def _per_group(reduce: Callable[[Floats, Ints], Floats], values: Floats, problem: Problem) -> Floats:
    """Values of the variables reduced within each group, and that of its group for each variable."""
    result: Floats = reduce(values, problem.tables.start[:-1])[problem.tables.group_of]
    return result


def _softmax(values: Floats, problem: Problem) -> Floats:
    result: Floats = np.exp(values - _per_group(np.logaddexp.reduceat, values, problem))
    return result


def _one_changed(assignment: Ints, problem: Problem) -> Ints:
    """For each variable the assignment with its choice in its group: `[variables, groups]`."""
    tables = problem.tables
    count = int(tables.start[-1])
    rows = np.repeat(assignment[None], count, axis=0)
    rows[np.arange(count), tables.group_of] = np.arange(count) - tables.start[tables.group_of]
    return rows
