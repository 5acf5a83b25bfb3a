"""What a finished search says of itself: the answer, its baselines, a verdict, and the price of each budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from haq import __version__
from haq.evaluate.base import UNITS
from haq.experiment.experiment import Experiment
from haq.hardware import profile_warnings
from haq.hardware.costs import cost_report, float_totals
from haq.problem.problem import Problem
from haq.results.headline import headline
from haq.results.verdict import verdict
from haq.runs.doubts import float_doubts, split_doubts
from haq.runs.references import TestedOnce, eight_bit
from haq.search.answer import choose
from haq.solve.settings import SolverSettings
from haq.solve.solve import Solution, solve
from haq.values.errors import InfeasibleError, InputError
from haq.values.trial import Trial

SCHEMA_VERSION = 1
_MARGINAL_FACTORS = (0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25)
_MARGINAL_GAP = 1e-3
_MARGINAL_SECONDS = 2.0
_BASELINES = ("uniform", "greedy")


def versions() -> dict[str, str]:
    """Versions of `haq` and of the libraries that its numbers depend on."""
    return {"haq": __version__, **{name: version(name) for name in ("torch", "numpy", "pulp", "highspy")}}


class Leader:
    """Follows a search: which trial is the best so far, and by how much it leads the best uniform policy.

    Args:
        problem: its objective and budgets.
        floor: as in `choose`.
    """

    def __init__(self, problem: Problem, floor: float | None) -> None:
        self.best: Trial | None = None
        self.uniform: Trial | None = None
        self._problem, self._floor = problem, floor

    def mark(self, trial: Trial) -> str:
        """What to say beside `trial`: nothing unless it leads."""
        if trial.source == "uniform":
            self.uniform = self._better(self.uniform, trial)
        before, self.best = self.best, self._better(self.best, trial)
        if self.best is None or self.best is before:
            return ""
        if self.uniform is None or self.best is self.uniform:
            return "  best so far"
        return f"  best so far, {self.best.measurement.score - self.uniform.measurement.score:+.4g} against uniform"

    def _better(self, old: Trial | None, new: Trial) -> Trial | None:
        return choose([trial for trial in (old, new) if trial is not None], self._problem, floor=self._floor)


def result_document(
    experiment: Experiment,
    problem: Problem,
    solution: Solution,
    trials: Sequence[Trial],
    *,
    floor: float | None,
) -> dict[str, Any]:
    """The content of `result.json`. Scores the answer, the baselines and the float model on the test split, once.

    Args:
        experiment: what was run.
        problem: what was solved.
        solution: the exact solution of the predicted problem, for its bound.
        trials: everything measured.
        floor: the least score that is allowed, if any.

    Raises:
        InputError: not one policy within budget could be measured; says why the last one failed.
        InfeasibleError: none of the measured policies reaches the floor.
    """
    config, profile = experiment.config, experiment.profile
    answer = choose(trials, problem, floor=floor, fitted=config.search.answer == "fitted")
    if answer is None:
        failed = next((trial.measurement.error for trial in reversed(trials) if trial.measurement.error), "none ran")
        raise InputError(f"no policy within budget could be measured: {failed}")
    floating, test = experiment.evaluator("search").float_measurement(), TestedOnce(experiment.evaluator("test"))
    drop = floating.score - answer.measurement.score
    if floor is not None and answer.measurement.score < floor:
        raise InfeasibleError(
            f"no measured policy keeps to budgets.accuracy_drop = {floating.score - floor:g}; the least drop measured "
            f"is {drop:.4g}; raise the budget, search.max_trials or the formats in [space]",
            {"accuracy_drop": drop},
        )
    baselines = {name: choose([t for t in trials if t.source == name], problem, floor=floor) for name in _BASELINES}
    proposed = {trial.policy.key for trial in trials if trial.source == config.search.strategy}
    allowed = {} if floor is None else {"accuracy_drop": config.budgets["accuracy_drop"]}
    breakdown = cost_report(experiment.network, experiment.cost_model, answer.policy).to_doc()
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "experiment": config.model_dump(mode="json"),
        "device": {
            "name": profile.name,
            "title": profile.title,
            "metrics": sorted(experiment.cost_model.metrics),
            "provenance": profile.provenance.model_dump(mode="json"),
        },
        "objective": problem.objective,
        "budgets": {**problem.budgets, **allowed},
        "status": solution.status,
        "bound": solution.bound,
        "predicted_optimum": solution.values[0] if solution.values else None,
        "metric": config.evaluator.metric,
        "score_unit": UNITS.get(config.evaluator.metric, ""),
        "score_noise": answer.measurement.details.get("score_error"),
        "answer": _entry(answer, test),
        "best_measured": _best_measured(trials, problem, answer, floor),
        "answer_is_baseline": answer.policy.key not in proposed,
        "baselines": {name: None if trial is None else _entry(trial, test) for name, trial in baselines.items()},
        "references": [_entry(trial, None) for trial in trials if trial.source == "uniform"],
        "trials": len(trials),
        "breakdown": breakdown,
        "coverage": breakdown["coverage"],
        "lower_bounds": breakdown["lower_bounds"],
        "marginal": _marginal(problem, SolverSettings.of(config.search.options)),
        "warnings": [
            *profile_warnings(profile, experiment.network),
            *profile.warnings(problem.costs(answer.policy)),
            *float_doubts(experiment.evaluator("search")),
            *split_doubts(answer, baselines.values(), samples=experiment.evaluator("search").samples),
        ],
    }
    result["float"] = {
        "search_score": floating.score,
        "test_score": test.evaluator.float_measurement().score,
        "costs": float_totals(experiment.network, experiment.cost_model),
    }
    result["eight_bit"] = eight_bit(experiment, trials, test)
    result["accuracy_drop"] = {"search": drop, "test": _test_drop(result)}
    result["verdict"] = verdict(result)
    result["headline"] = headline(result)
    return result


def _entry(trial: Trial, test: TestedOnce | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": f"{trial.source} #{trial.number}",
        "source": trial.source,
        "policy": trial.policy.to_doc(),
        "costs": dict(trial.costs),
        "score": trial.measurement.score if trial.measurement.ok else None,
    }
    if test is not None:
        measured = test(trial.policy)
        entry["test_score"] = measured.score if measured.ok else None
        entry["test_noise"] = measured.details.get("score_error")
    return entry


def _test_drop(result: Mapping[str, Any]) -> float | None:
    score = result["answer"]["test_score"]
    return None if score is None else float(result["float"]["test_score"] - score)


def _best_measured(trials: Sequence[Trial], problem: Problem, answer: Trial, floor: float | None) -> float | None:
    """The best score that was measured, where it is not the answer's."""
    best = choose(trials, problem, floor=floor)
    if problem.objective != "sensitivity" or best is None or best.measurement.score <= answer.measurement.score:
        return None
    return best.measurement.score


def _marginal(problem: Problem, solving: SolverSettings) -> dict[str, Any]:
    """What more or less of each budget does to the predicted objective: the problem solved again around the budget."""
    return {metric: _around(problem, metric, budget, solving) for metric, budget in problem.budgets.items()}


def _around(problem: Problem, metric: str, budget: float, solving: SolverSettings) -> dict[str, Any]:
    limit = min(solving.time_limit or _MARGINAL_SECONDS, _MARGINAL_SECONDS)
    quick = replace(solving, gap=max(solving.gap, _MARGINAL_GAP), time_limit=limit)
    points = []
    for factor in _MARGINAL_FACTORS:
        other = problem.with_budgets({**problem.budgets, metric: factor * budget})
        found = solve(other, **quick.keywords)
        if found.values:
            points.append({"budget": factor * budget, "objective": found.values[0]})
    at = [point for point in points if point["budget"] >= budget]
    price = None
    if len(at) > 1:
        price = (at[0]["objective"] - at[-1]["objective"]) / (at[-1]["budget"] - at[0]["budget"])
    return {"budget": budget, "points": points, "price": price}


def policy_document(experiment: Experiment, result: Mapping[str, Any], *, command: str) -> dict[str, Any]:
    """The content of `policy.json`: the policy, what it is predicted to cost, what it scored, and where it is from."""
    answer = result["answer"]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": experiment.config.name,
        "policy": answer["policy"],
        "predicted": answer["costs"],
        "measured": {
            "metric": result["metric"],
            "unit": result["score_unit"],
            "fidelity": experiment.config.evaluator.rungs[-1],
            "search_score": answer["score"],
            "test_score": answer["test_score"],
            "float_search_score": result["float"]["search_score"],
            "float_test_score": result["float"]["test_score"],
            **({"latency_ms": answer["measured_latency_ms"]} if "remeasured" in result else {}),
        },
        "budgets": result["budgets"],
        "provenance": {
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": answer["source"],
            "seed": experiment.config.seed,
            "versions": versions(),
            "splits": {name: len(getattr(experiment.data, name)) for name in ("train", "search", "test")},
            "hashes": {**experiment.hashes, "profile": experiment.profile.digest},
            "device": result["device"],
            "quantization": experiment.quantization.model_dump(mode="json"),
            "config": result["experiment"],
        },
    }


def trial_row(trial: Trial) -> dict[str, Any]:
    """One line of `trials.csv`."""
    return {
        "number": trial.number,
        "source": trial.source,
        "score": trial.measurement.score,
        "fidelity": trial.measurement.fidelity,
        "seconds": round(trial.measurement.seconds, 4),
        **trial.costs,
        "error": trial.measurement.error,
        "policy": " ".join(f"{layer}={precision}" for layer, precision in trial.policy.items()),
    }
