"""The measured loss as tables again: layer terms and pair terms by Bayesian linear regression.

The model of what a policy x measures is

    y(x) = a + b (T(x) + sum_g u_g(x_g) + sum_{g<h} w_gh(x_g, x_h) + noise)

with T the predicted loss of the problem's tables: its sensitivities are the prior mean. The other coefficients are
Gaussian of mean 0. A layer term has a standard deviation proportional to the sensitivity s of the choice: predictions
are off by a factor. A pair term has one proportional to sqrt(s t), s and t being the sensitivities of the two choices:
what two perturbations that cost s and t alone can cost together (by Cauchy and Schwarz in the quadratic form of CLADO,
arXiv 2307.05657, equation 6). The posterior is linear in the coefficients, so it is a problem of the same form as the
tables, and the exact solver solves it. As a Gaussian process the regression takes time cubic in the measurements only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from haq.problem.document import SENSITIVITY
from haq.problem.problem import Problem
from haq.problem.tables import Floats, Ints
from haq.values.trial import Trial

_LAYER, _PAIR, _NOISE = 0.2, 0.1, 0.1
"""Prior scales of layer terms and pair terms relative to the sensitivities, and of the rest to the mean sensitivity."""
_SHARED = 0.5
"""Part of a layer's error that all of its choices have in common; the rest is its weights' and its activations'."""
_FLOOR = 0.05
"""A choice without predicted loss may still lose this part of the mean."""
_NOISES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Candidates where the noise itself is fitted."""
_SLOPES = np.logspace(-4, 4, 161)
_SLOPE_DECADES = 1.0
"""b is known to a power of ten or so: what the measurements vary per variation of T."""


@dataclass(frozen=True)
class Terms:
    """Coefficients: of each variable `[V]`, and a matrix for each pair of groups."""

    unary: Floats
    pairs: tuple[Floats, ...]


def total(first: Terms, others: Iterable[Terms]) -> Terms:
    """The sum of coefficients."""
    for other in others:
        first = Terms(first.unary + other.unary, tuple(p + q for p, q in zip(first.pairs, other.pairs, strict=True)))
    return first


class Design:
    """A problem's groups and choices as the features of the regression, in units of the mean sensitivity.

    Attributes:
        pairs: the pairs of groups, in the order of `Terms.pairs`.
        layer: per group, covariance of the layer terms of its choices.
        shared: per group, what the covariance of pair terms is the product of.
    """

    def __init__(self, problem: Problem) -> None:
        tables = self._tables = problem.tables
        unary = tables.unary[SENSITIVITY]
        rise = unary - np.minimum.reduceat(unary, tables.start[:-1])[tables.group_of]
        self._unit = float(rise.mean()) or 1.0
        rise = np.maximum(rise / self._unit, _FLOOR)
        self.pairs = list(itertools.combinations(range(len(problem.groups)), 2))
        self.layer: list[Floats] = []
        self.shared: list[Floats] = []
        for group in range(len(problem.groups)):
            own = rise[tables.start[group] : tables.start[group + 1]]
            likeness = _likeness(problem, group)
            self.layer.append(_LAYER**2 * likeness * np.outer(own, own))
            self.shared.append(_PAIR * likeness * np.sqrt(np.outer(own, own)))

    def predicted(self, rows: Ints) -> Floats:
        """T of each row of `[N, G]`."""
        return self._tables.total(SENSITIVITY, rows) / self._unit

    @cached_property
    def prior(self) -> Terms:
        """The coefficients of T."""
        sizes = self._tables.sizes
        found = {(g, h): np.zeros((sizes[g], sizes[h])) for g, h in self.pairs}
        known = self._tables.pairs[SENSITIVITY]
        unary = self._tables.unary[SENSITIVITY] / self._unit
        for index, (g, h) in enumerate(zip(known.first.tolist(), known.second.tolist(), strict=True)):
            matrix = known.matrix(index) / self._unit
            if g == h:
                unary = unary.copy()
                unary[self._tables.start[g] : self._tables.start[g + 1]] += np.diagonal(matrix)
            else:
                found[min(g, h), max(g, h)] += matrix if g < h else matrix.T
        return Terms(unary, tuple(found.values()))

    def kernel(self, first: Ints, second: Ints) -> Floats:
        """Prior covariance of what rows of `[N, G]` and `[M, G]` measure beyond T, noise apart: `[N, M]`."""
        layer = np.zeros((len(first), len(second)))
        once, squares = np.zeros_like(layer), np.zeros_like(layer)
        for g, (own, shared) in enumerate(zip(self.layer, self.shared, strict=True)):
            where = first[:, g][:, None], second[:, g]
            layer += own[where]
            once += shared[where]
            squares += shared[where] ** 2
        return layer + (once**2 - squares) / 2

    def values(self, terms: Terms, rows: Ints) -> Floats:
        """The sum of the terms of each row of `[N, G]`."""
        result: Floats = terms.unary[self._tables.start[:-1] + rows].sum(axis=1)
        for (g, h), matrix in zip(self.pairs, terms.pairs, strict=True):
            result = result + matrix[rows[:, g], rows[:, h]]
        return result

    def draw(self, rng: np.random.Generator) -> Terms:
        """Coefficients from their prior."""
        own = [root @ rng.standard_normal(len(root)) for root in self._roots[0]]
        shared = self._roots[1]
        both = [shared[g] @ rng.standard_normal((len(shared[g]), len(shared[h]))) @ shared[h].T for g, h in self.pairs]
        return Terms(np.concatenate(own), tuple(both))

    @cached_property
    def _roots(self) -> tuple[list[Floats], list[Floats]]:
        return [_root(matrix) for matrix in self.layer], [_root(matrix) for matrix in self.shared]


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    result: Floats = vectors * np.sqrt(np.maximum(values, 0.0))
    return result


def _likeness(problem: Problem, group: int) -> Floats:
    """Correlation of the errors of one group's choices, `[n, n]`."""
    precisions = problem.choices(problem.groups[group][0])
    weight = np.array([[p.weight == q.weight for q in precisions] for p in precisions], dtype=np.float64)
    activation = np.array([[p.activation == q.activation for q in precisions] for p in precisions], dtype=np.float64)
    result: Floats = _SHARED + (1 - _SHARED) * (weight + activation) / 2
    return result


class Fit:
    """The posterior given measurements; a and b are those of greatest likelihood.

    Args:
        design: of the problem.
        rows: measured assignments `[N, G]`, at least one.
        measured: what they measured, smaller is better, `[N]`.
        base: takes the place of T at the measured rows: a quantity better known there.
        noise: standard deviation of what the terms do not explain, in the unit of T.

    Attributes:
        standardized: the measurements in the unit of T, `(y - a) / b`.
        likelihood: logarithm, up to a constant.
    """

    def __init__(
        self, design: Design, rows: Ints, measured: Floats, *, base: Floats | None = None, noise: float = _NOISE
    ) -> None:
        self._design, self._rows, self._noise = design, rows, noise
        base = design.predicted(rows) if base is None else base
        covariance = design.kernel(rows, rows) + noise**2 * np.eye(len(rows))
        self._inverse = np.linalg.inv(covariance).astype(np.float64)
        self.likelihood, slope, intercept = _likelihood(self._inverse, base, measured)
        self.standardized = (measured - intercept) / slope
        self._residual = self.standardized - base

    @property
    def best(self) -> float:
        """The best measurement, in the unit of T."""
        return float(self.standardized.min())

    @property
    def denoised(self) -> Floats:
        """The posterior mean of what was measured, without its noise, in the unit of T, `[N]`."""
        result: Floats = self.standardized - self._noise**2 * (self._inverse @ self._residual)
        return result

    def terms(self) -> Terms:
        """The posterior mean of the coefficients beyond T."""
        return self._explain(self._residual)

    def draw(self, rng: np.random.Generator) -> Terms:
        """Coefficients from the posterior: from the prior, corrected by what the measurements say (Matheron's rule)."""
        prior = self._design.draw(rng)
        noise = self._noise * rng.standard_normal(len(self._rows))
        return total(prior, [self._explain(self._residual - self._design.values(prior, self._rows) - noise)])

    def _explain(self, residual: Floats) -> Terms:
        """The likeliest coefficients that account for `residual` at the measured rows."""
        weights, rows = self._inverse @ residual, self._rows
        own = [matrix[:, rows[:, g]] @ weights for g, matrix in enumerate(self._design.layer)]
        each = [matrix[:, rows[:, g]] for g, matrix in enumerate(self._design.shared)]
        both = [(each[g] * weights) @ each[h].T for g, h in self._design.pairs]
        return Terms(np.concatenate(own), tuple(both))

    def deviation(self, rows: Ints) -> Floats:
        """Standard deviation of what `rows` `[N, G]` would measure, in the unit of T."""
        cross = self._design.kernel(rows, self._rows)
        own = np.array([self._design.kernel(row[None], row[None])[0, 0] for row in rows])
        explained = np.einsum("nm,mk,nk->n", cross, self._inverse, cross)
        result: Floats = np.sqrt(np.maximum(own - explained, 0.0) + self._noise**2)
        return result


def fit_loss(design: Design, rows: Ints, losses: Floats, *, noise: float = _NOISE) -> Fit:
    """The fit of the loss or of its logarithm, whichever is likelier: far from the float model the latter adds up."""
    plain = Fit(design, rows, losses, noise=noise)
    if (losses <= 0).any():
        return plain
    other = Fit(design, rows, np.log(losses), noise=noise)
    other.likelihood -= float(np.log(losses).sum())
    return other if other.likelihood >= plain.likelihood else plain


def denoised(problem: Problem, trials: Sequence[Trial]) -> Floats:
    """The trials' losses (where they have none: minus their scores) without their noise, up to scale, `[N]`.

    The best of many measurements on few samples is mostly lucky. This is the posterior mean of each under the model
    above, the noise being the likeliest of six; with little noise the order is that of the measurements.

    Args:
        problem: that was searched; its sensitivities are the prior.
        trials: measured ones, at least one.
    """
    design, rows = Design(problem), np.array([problem.assignment(trial.policy) for trial in trials])
    losses = np.array([trial.measurement.details.get("loss", math.nan) for trial in trials])
    scores = np.array([trial.measurement.score for trial in trials])
    if np.isfinite(losses).all():
        fits = [fit_loss(design, rows, losses, noise=noise) for noise in _NOISES]
    else:
        fits = [Fit(design, rows, -scores, noise=noise) for noise in _NOISES]
    return max(fits, key=lambda fit: fit.likelihood).denoised


def _likelihood(inverse: Floats, base: Floats, measured: Floats) -> tuple[float, float, float]:
    """The greatest log-likelihood over b, with b and a there; all of it from inner products of 1, T and y."""
    spread, varied = float(np.std(base)), float(np.std(measured))
    slopes = _SLOPES * (varied / spread if spread > 0 and varied > 0 else 1.0)
    vectors = np.stack([np.ones(len(base)), base, measured])
    gram = vectors @ inverse @ vectors.T
    intercept = (gram[0, 2] - slopes * gram[0, 1]) / gram[0, 0]
    square = gram[2, 2] - 2 * slopes * gram[1, 2] + slopes**2 * gram[1, 1] - intercept**2 * gram[0, 0]
    likelihood = -0.5 * square / slopes**2 - (len(base) - 1) * np.log(slopes)
    likelihood -= 0.5 * (np.log10(_SLOPES) / _SLOPE_DECADES) ** 2
    best = int(likelihood.argmax())
    determinant = float(np.linalg.slogdet(inverse)[1]) - math.log(gram[0, 0])
    return float(likelihood[best]) + 0.5 * determinant, float(slopes[best]), float(intercept[best])
