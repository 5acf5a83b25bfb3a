"""`haq search`: run an experiment and write its run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from haq import __version__
from haq.costs import cost_report
from haq.errors import InfeasibleError, InputError
from haq.evaluate import LocalExecutor, PTQEvaluator
from haq.experiment import Experiment
from haq.files import write_json, write_text
from haq.problem import Problem
from haq.report import write_plots, write_report
from haq.search import STRATEGIES, AccuracyDropSearch, Greedy, SearchStrategy, run_search, uniform_policies
from haq.search.journal import Journal
from haq.search.solve import solve_document
from haq.sensitivity import SensitivityTable
from haq.types import Measurement, Policy, Trial

SCHEMA_VERSION = 1
_MARGINAL_FACTORS = (0.8, 0.9, 0.95, 1.0, 1.01, 1.05, 1.1, 1.25)
_MARGINAL_SECONDS = 5.0
_MAX_REFERENCES = 9


class Reporter(Protocol):
    """Shows the progress of a run; `haq.cli` draws it, tests leave it out."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins, of `total` steps if known."""

    def step(self, done: int, total: int) -> None:
        """`done` of `total` steps of this stage are done."""

    def note(self, text: str) -> None:
        """One line worth keeping on the screen."""


class Silent:
    """A `Reporter` that shows nothing."""

    def stage(self, name: str, total: int | None = None) -> None: ...
    def step(self, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class Clock:
    """Wall seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to `stage`."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def versions() -> dict[str, str]:
    """Versions of `haq` and of the libraries that its numbers depend on."""
    return {"haq": __version__, **{name: version(name) for name in ("torch", "numpy", "pulp", "highspy")}}


def run_folder(experiment: Experiment, out: Path | None, *, resume: bool) -> Path:
    """Where the run goes: `out`, else `runs/<name>`, or `runs/<name>-2`, ... where that one is taken.

    With `resume`, the newest of these.
    """
    if out is not None:
        return out
    first = Path("runs") / experiment.config.name
    taken = [first] if first.exists() else []
    number = 2
    while (candidate := first.with_name(f"{first.name}-{number}")).exists():
        taken.append(candidate)
        number += 1
    if resume and not taken:
        raise InputError(f"{first}: no run to resume; start it without --resume, or name the folder with --out")
    if resume:
        return taken[-1]
    return candidate if taken else first


def build_strategy(experiment: Experiment, problem: Problem, *, float_score: float) -> SearchStrategy:
    """The strategy that the experiment names.

    Raises:
        InputError: unknown strategy or option.
    """
    config = experiment.config
    if config.search.strategy not in STRATEGIES:
        known = ", ".join(sorted(STRATEGIES))
        raise InputError(f"search.strategy = {config.search.strategy!r}: unknown; known: {known}")
    drop = config.budgets.get("accuracy_drop")
    if drop is not None:
        return _accuracy_drop_search(experiment, problem, float_score - _points(drop))
    try:
        return STRATEGIES[config.search.strategy](problem, seed=config.seed, **config.search.options)
    except TypeError as error:
        raise InputError(f"search.options: {error}; see the options of {config.search.strategy!r}") from error
    except InfeasibleError:
        raise
    except ValueError as error:
        raise InputError(f"search.options: {error}") from error


def _points(drop: float | str) -> float:
    if isinstance(drop, str):
        raise InputError(f"budgets.accuracy_drop = {drop!r}: give points of the score as a number, for example 1.0")
    return drop


def _accuracy_drop_search(experiment: Experiment, problem: Problem, floor: float) -> SearchStrategy:
    config = experiment.config
    if config.objective == "sensitivity":
        raise InputError("budgets.accuracy_drop: needs objective = a cost metric, for example latency_ms")
    if config.search.strategy != "ilp":
        raise InputError(f"budgets.accuracy_drop: needs search.strategy = 'ilp', got {config.search.strategy!r}")
    return AccuracyDropSearch(problem, floor=floor, **config.search.options)


def _journal(experiment: Experiment, folder: Path, *, resume: bool) -> Journal:
    config = experiment.config.model_dump(mode="json", exclude={"threads"})
    setup = {
        "config": config,
        "hashes": experiment.hashes,
        "profile": experiment.profile.digest,
        "haq": versions()["haq"],
    }
    path = folder / "trials.jsonl"
    if resume and path.exists():
        return Journal.resume(path, setup)
    return Journal.create(path, setup)


def _fixed(problem: Problem) -> list[tuple[str, Policy]]:
    """The policies that are always measured: uniform ones (those within budget first) and greedy's."""
    uniform = sorted(uniform_policies(problem), key=lambda policy: bool(problem.violation(policy)))[:_MAX_REFERENCES]
    fixed = [("uniform", policy) for policy in uniform]
    try:
        greedy = Greedy(problem, seed=0).suggest(1)
    except InfeasibleError:
        greedy = []
    return fixed + [("greedy", policy) for policy in greedy]


def run_experiment(
    experiment: Experiment,
    *,
    out: Path | None = None,
    resume: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Search, measure, and write the run folder.

    Args:
        experiment: what to run.
        out: the run folder; see `run_folder` for the default.
        resume: go on with a killed run.
        command: how the user started it, for the provenance.
        reporter: shows progress.

    Returns:
        The run folder and the content of its `result.json`.

    Raises:
        InputError: something the user gave cannot be used.
        InfeasibleError: no policy meets the budgets.
    """
    show, clock, config = reporter or Silent(), Clock(), experiment.config
    show.stage("tracing the model")
    with clock.measure("trace"):
        experiment.budgets  # noqa: B018  bad budgets are told before anything is written
        experiment.space  # noqa: B018
    with clock.measure("calibrate"):
        experiment.quantized  # noqa: B018
    folder = run_folder(experiment, out, resume=resume)
    if (folder / "trials.jsonl").exists() and not resume:
        raise InputError(f"{folder}: a run is there already; add --resume to go on, or name another --out")
    show.stage(f"sensitivity ({config.sensitivity.metric})")
    with clock.measure("sensitivity"):
        sensitivity = experiment.sensitivity(file=folder / "sensitivity.json", progress=show.step)
    show.stage("solving")
    with clock.measure("solve"):
        problem = experiment.problem(sensitivity)
        solution = solve_document(problem, time_limit=config.search.options.get("time_limit"))
        if solution["status"] == "infeasible":
            raise _infeasible(experiment, problem, solution["minimum"])
    journal = _journal(experiment, folder, resume=resume)
    show.stage("measuring policies")
    evaluator = experiment.evaluator("search")
    with clock.measure("evaluate"):
        float_score = evaluator.float_measurement()
        strategy = build_strategy(experiment, problem, float_score=float_score.score)
        run_search(
            problem,
            strategy,
            LocalExecutor(evaluator),
            name=config.search.strategy,
            max_trials=config.search.max_trials,
            journal=journal,
            fixed=_fixed(problem),
            on_trial=lambda trial: show.note(_trial_line(trial, config.objective)),
        )
    show.stage("test split")
    with clock.measure("test"):
        result = _result(experiment, problem, solution, journal.trials, float_score)
    result["seconds"] = {stage: round(seconds, 3) for stage, seconds in clock.seconds.items()}
    show.stage("writing")
    _write(experiment, folder, result, problem, sensitivity, journal.trials, command)
    return folder, result


def _trial_line(trial: Trial, objective: str) -> str:
    predicted = f"{objective} {trial.costs[objective]:.4g}"
    score = f"score {trial.measurement.score:.2f}" if trial.measurement.ok else f"failed: {trial.measurement.error}"
    return f"trial {trial.number:3d}  {trial.source:12s} {predicted:28s} {score}"


def _infeasible(experiment: Experiment, problem: Problem, minimum: Mapping[str, float]) -> InfeasibleError:
    least = ", ".join(
        f"{metric} {value:.6g} (budget {problem.budgets[metric]:.6g})" for metric, value in minimum.items()
    )
    return InfeasibleError(
        f"no policy meets the budgets on {experiment.profile.name}; least achievable, each alone: {least}; "
        "raise the budget or allow more formats in [space]",
        minimum,
    )


def _entry(problem: Problem, trial: Trial, test: PTQEvaluator) -> dict[str, Any]:
    measured = test(trial.policy) if trial.measurement.ok else trial.measurement
    return {
        **_summary(trial),
        "policy": trial.policy.to_doc(),
        "test_score": measured.score if measured.ok else None,
        "test_noise": measured.details.get("score_error"),
        "within_budget": not problem.violation(trial.policy),
    }


def _summary(trial: Trial) -> dict[str, Any]:
    return {
        "name": f"{trial.source} #{trial.number}",
        "number": trial.number,
        "source": trial.source,
        "costs": dict(trial.costs),
        "score": trial.measurement.score if trial.measurement.ok else None,
        "policy": trial.policy.to_doc(),
    }


def choose(trials: list[Trial], problem: Problem, *, floor: float | None) -> Trial:
    """The answer among measured trials that are within budget.

    The best score; with `floor` (least cost at a bounded accuracy drop) the least objective whose score is at or
    above it, or the best score where none is. Equal scores are told apart by the objective, then by order.

    Raises:
        ValueError: not one trial within budget was measured; says why the last one failed.
    """
    usable = [trial for trial in trials if trial.measurement.ok and not problem.violation(trial.policy)]
    if not usable:
        failed = next((trial.measurement.error for trial in reversed(trials) if trial.measurement.error), "none ran")
        raise ValueError(f"no policy within budget could be measured: {failed}")
    objective = problem.objective

    def by_score(trial: Trial) -> tuple[float, float, int]:
        return (-trial.measurement.score, trial.costs[objective], trial.number)

    if floor is not None:
        reaching = [trial for trial in usable if trial.measurement.score >= floor]
        if reaching:
            return min(reaching, key=lambda trial: (trial.costs[objective], *by_score(trial)))
        return min(usable, key=by_score)
    if objective != "sensitivity":
        return min(usable, key=lambda trial: (trial.costs[objective], *by_score(trial)))
    return min(usable, key=by_score)


def _result(
    experiment: Experiment, problem: Problem, solution: Mapping[str, Any], trials: list[Trial], floating: Measurement
) -> dict[str, Any]:
    config = experiment.config
    drop = config.budgets.get("accuracy_drop")
    floor = None if drop is None else floating.score - _points(drop)
    answer = choose(trials, problem, floor=floor)
    own = [trial for trial in trials if trial.source == config.search.strategy]
    test = experiment.evaluator("test")

    def best(source: str) -> Trial | None:
        mine = [trial for trial in trials if trial.source == source]
        try:
            return choose(mine, problem, floor=floor)
        except ValueError:
            return None

    baselines = {source: best(source) for source in ("uniform", "greedy")}
    entries = {name: trial and _entry(problem, trial, test) for name, trial in baselines.items()}
    chosen = _entry(problem, answer, test)
    float_test = test.float_measurement()
    result = {
        "schema_version": SCHEMA_VERSION,
        "experiment": config.model_dump(mode="json"),
        "device": {
            "name": experiment.profile.name,
            "title": experiment.profile.title,
            "metrics": sorted(experiment.cost_model.metrics),
            "provenance": experiment.profile.provenance.model_dump(mode="json"),
        },
        "objective": problem.objective,
        "budgets": dict(problem.budgets) | ({} if drop is None else {"accuracy_drop": drop}),
        "status": solution["status"],
        "bound": solution["bound"],
        "predicted_optimum": solution["objective"],
        "metric": config.evaluator.metric,
        "score_unit": "%" if config.evaluator.metric == "accuracy" else "",
        "score_noise": answer.measurement.details.get("score_error"),
        "float": {"search_score": floating.score, "test_score": float_test.score},
        "answer": chosen,
        "answer_is_baseline": answer.source != config.search.strategy
        and answer.policy.key not in {trial.policy.key for trial in own},
        "baselines": entries,
        "references": [_summary(trial) for trial in trials if trial.source == "uniform"],
        "trials": len(trials),
        "breakdown": cost_report(experiment.network, experiment.cost_model, answer.policy).to_doc(),
        "marginal": _marginal(problem),
        "warnings": list(experiment.profile.warnings(problem.costs(answer.policy))),
    }
    result["verdict"] = verdict(result)
    return result


def verdict(result: Mapping[str, Any]) -> str:
    """One sentence on how good the answer is, by the test split; differences within two standard errors are ties."""
    answer, unit = result["answer"], result["score_unit"]
    unit = " points" if unit == "%" else ""
    parts = []
    for name, entry in result["baselines"].items():
        if entry is None:
            parts.append(f"no {name} policy meets the budgets")
            continue
        if entry["policy"] == answer["policy"]:
            parts.append(f"is the {name} policy itself")
            continue
        parts.append(_comparison(answer, entry, name, unit, result["objective"]))
    drop = result["float"]["test_score"] - answer["test_score"]
    start = f"At {answer['test_score']:.2f}{result['score_unit']} on the test split ({drop:+.2f}{unit} lost to float)"
    lead = f"{start} the answer " + "; ".join(parts)
    if result["answer_is_baseline"]:
        lead += f". The search found nothing better than {answer['source']}: that policy is the answer"
    return lead + "."


def _comparison(answer: Mapping[str, Any], entry: Mapping[str, Any], name: str, unit: str, objective: str) -> str:
    if entry["test_score"] is None:
        return f"stands alone: the {name} policy could not be measured"
    difference = answer["test_score"] - entry["test_score"]
    errors = [error for error in (answer["test_noise"], entry["test_noise"]) if error is not None]
    noise = 2.0 * math.hypot(*errors) if errors else 0.0
    if abs(difference) <= noise:
        words = f"ties with {name} within noise ({difference:+.2f}{unit}, noise ±{noise:.2f})"
    else:
        words = (
            f"{'beats' if difference > 0 else 'loses to'} {name} by {abs(difference):.2f}{unit} (noise ±{noise:.2f})"
        )
    if objective != "sensitivity":
        saved = entry["costs"][objective] - answer["costs"][objective]
        words += f" at {saved:+.4g} {objective} saved"
    return words


def _marginal(problem: Problem) -> dict[str, Any]:
    """What more or less of each budget does to the predicted objective: re-solved around the budget."""
    marginal = {}
    for metric, budget in problem.budgets.items():
        points = []
        for factor in _MARGINAL_FACTORS:
            solved = solve_document(
                problem.with_budgets({**problem.budgets, metric: factor * budget}),
                gap=1e-3,
                time_limit=_MARGINAL_SECONDS,
            )
            if solved["objective"] is not None:
                points.append({"budget": factor * budget, "objective": solved["objective"]})
        marginal[metric] = {"budget": budget, "points": points, "price": _price(points, budget)}
    return marginal


def _price(points: list[dict[str, float]], budget: float) -> float | None:
    """Decrease of the objective per unit of budget, from the budget to the largest one solved."""
    at = [point for point in points if point["budget"] >= budget]
    if len(at) < 2:
        return None
    return (at[0]["objective"] - at[-1]["objective"]) / (at[-1]["budget"] - at[0]["budget"])


def _policy_doc(experiment: Experiment, result: Mapping[str, Any], command: str) -> dict[str, Any]:
    answer = result["answer"]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": experiment.config.name,
        "policy": answer["policy"],
        "predicted": answer["costs"],
        "measured": {
            "metric": result["metric"],
            "unit": result["score_unit"],
            "fidelity": experiment.config.evaluator.kind,
            "search_score": answer["score"],
            "test_score": answer["test_score"],
            "float_search_score": result["float"]["search_score"],
            "float_test_score": result["float"]["test_score"],
        },
        "budgets": result["budgets"],
        "provenance": {
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": answer["source"],
            "seed": experiment.config.seed,
            "versions": versions(),
            "hashes": {**experiment.hashes, "profile": experiment.profile.digest},
            "device": result["device"],
            "quantization": experiment.quantization.model_dump(mode="json"),
            "config": result["experiment"],
        },
    }


def _write(
    experiment: Experiment,
    folder: Path,
    result: dict[str, Any],
    problem: Problem,
    sensitivity: SensitivityTable,
    trials: list[Trial],
    command: str,
) -> None:
    result["command"] = command
    write_json(folder / "problem.json", problem.to_doc())
    write_text(folder / "sensitivity.csv", pd.DataFrame(sensitivity.rows()).to_csv(index=False))
    write_text(folder / "trials.csv", pd.DataFrame([_row(trial) for trial in trials]).to_csv(index=False))
    write_json(folder / "result.json", result)
    write_json(folder / "policy.json", _policy_doc(experiment, result, command))
    write_plots(folder)
    write_report(folder)


def _row(trial: Trial) -> dict[str, Any]:
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
