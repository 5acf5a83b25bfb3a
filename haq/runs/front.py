"""Several budgets or several devices in one experiment: one run for each, and what they say together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haq.edges.cells import csv_text
from haq.edges.documents import write_json, write_text
from haq.edges.progress import Reporter
from haq.experiment.config import ExperimentConfig
from haq.experiment.experiment import Experiment
from haq.hardware.costs import cost_report
from haq.problem.problem import load_problem
from haq.report import compare_runs
from haq.results.read import load_run
from haq.runs.search import run_experiment, run_folder
from haq.search.answer import choose
from haq.values.errors import InfeasibleError, InputError
from haq.values.policy import Policy
from haq.values.trial import Measurement, Trial

DOCUMENT = "front.json"


@dataclass(frozen=True)
class Point:
    """One device and one bound of each budget.

    Attributes:
        name: of its run folder inside the whole run's.
        device: name or path of the profile.
        budgets: as in the experiment file, each a single bound.
    """

    name: str
    device: str
    budgets: Mapping[str, float | str]

    def of(self, config: ExperimentConfig) -> ExperimentConfig:
        """`config` for this point alone."""
        device = config.device.model_copy(update={"profile": self.device})
        return config.model_copy(update={"device": device, "budgets": dict(self.budgets)})


def points(config: ExperimentConfig) -> tuple[Point, ...]:
    """Every device with every bound, in the order of the experiment file; a single point where it lists nothing."""
    profile = config.device.profile
    devices = (profile,) if isinstance(profile, str) else profile
    listed = [key for key, value in config.budgets.items() if not isinstance(value, str | float)]
    choices = [(value,) if isinstance(value, str | float) else value for value in config.budgets.values()]
    result = []
    for device, bounds in itertools.product(devices, itertools.product(*choices)):
        budgets = dict(zip(config.budgets, bounds, strict=True))
        parts = [Path(device).stem] * (len(devices) > 1)
        parts += [f"{key}-{str(budgets[key]).replace('%', 'pct')}" for key in listed]
        result.append(Point("-".join(parts), device, budgets))
    return tuple(result)


def run_front(
    experiment: Experiment,
    *,
    out: Path | None = None,
    resume: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Run every point of an experiment that lists budgets or devices, and write `front.json` and `front.csv`.

    A device's points share its sensitivities, and the answer at each bound is the best of everything measured for that
    device within the bound, so that a larger budget never has a worse score on the search split.

    Args:
        experiment: what to run.
        out: the folder; each point has a run folder in it. See `run_folder` for the default.
        resume: go on with a killed run.
        command: how the user started it, for the provenance.
        reporter: shows progress.

    Returns:
        The folder and the content of `front.json`.

    Raises:
        InputError: something the user gave cannot be used.
        InfeasibleError: no point has a policy that meets its budgets.
    """
    every = points(experiment.config)
    folder = run_folder(experiment.config.name, out, resume=resume)
    if not resume and any((folder / point.name).exists() for point in every):
        raise InputError(f"{folder}: a run already exists; add --resume to go on, or name another --out")
    bases = _checked(experiment, every)
    parts: dict[str, Experiment] = {}
    failures: dict[str, InfeasibleError] = {}
    for point in every:
        base, config = bases[point.device], point.of(experiment.config)
        part = parts[point.name] = base if base.config == config else base.at(config)
        inside = folder / point.name
        if reporter is not None:
            reporter.note(f"{point.name}:")
        go_on = resume and inside.exists()
        try:
            run_experiment(part, out=inside, resume=go_on, command=command, reporter=reporter)
        except InfeasibleError as error:
            failures[point.name] = error
    found = [point for point in every if point.name not in failures]
    if not found:
        raise failures[every[0].name]
    document = _document(experiment, folder, every, parts, failures)
    _write(folder, document, [folder / point.name for point in found])
    return folder, document


def _checked(experiment: Experiment, every: Sequence[Point]) -> dict[str, Experiment]:
    """Check every point before anything is measured; the first experiment of each device."""
    bases: dict[str, Experiment] = {}
    for point in every:
        part = bases.get(point.device, experiment).at(point.of(experiment.config))
        part.check()
        bases.setdefault(point.device, part)
    return bases


def _document(
    experiment: Experiment,
    folder: Path,
    every: Sequence[Point],
    parts: Mapping[str, Experiment],
    failures: Mapping[str, InfeasibleError],
) -> dict[str, Any]:
    found = [point for point in every if point.name not in failures]
    trials: dict[str, list[Trial]] = {}
    for point in found:
        trials.setdefault(point.device, []).extend(load_run(folder / point.name).trials)
    entries: list[dict[str, Any]] = []
    for point in every:
        if point.name in failures:
            entries.append(_entry(point, None) | {"minimum": dict(failures[point.name].minimum)})
            continue
        answer = _answer(parts[point.name], folder / point.name, trials[point.device])
        same = next(
            (e["point"] for e in entries if (e["device"], e["policy"]) == (point.device, answer.policy.to_doc())), None
        )
        test = parts[point.name].evaluator("test")(answer.policy)
        coverage = cost_report(parts[point.name].network, parts[point.name].cost_model, answer.policy).coverage
        entries.append(
            _entry(point, answer)
            | {"same_policy_as": same, "test_score": test.score if test.ok else None}
            | {"coverage": coverage.to_doc()}
        )
    first = parts[found[0].name]
    return {
        "schema_version": 1,
        "name": experiment.config.name,
        "metric": experiment.config.evaluator.metric,
        "float_test_score": first.evaluator("test").float_measurement().score,
        "points": entries,
        "transfer": _transfer(entries, parts),
    }


def _entry(point: Point, answer: Trial | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"point": point.name, "device": point.device, "budgets": dict(point.budgets)}
    if answer is None:
        return entry | {"status": "infeasible", "policy": None, "costs": {}, "search_score": None, "test_score": None}
    costs, score = dict(answer.costs), answer.measurement.score
    return entry | {"status": "found", "policy": answer.policy.to_doc(), "costs": costs, "search_score": score}


def _answer(part: Experiment, folder: Path, trials: Sequence[Trial]) -> Trial:
    """The best of what was measured for this device, within this point's budgets.

    Finalists of a ladder and policies that were timed belong to their run: there it is that run's answer.
    """
    if part.config.evaluator.ladder or part.config.search.remeasure:
        own = load_run(folder).result.answer
        assert own.score is not None
        return Trial(0, own.source, own.policy, own.costs, Measurement(own.score, part.config.evaluator.kind))
    floor = part.score_floor(part.evaluator("search").float_score())
    fitted = part.config.search.answer == "fitted"
    answer = choose(trials, load_problem(folder / "problem.json"), floor=floor, fitted=fitted)
    assert answer is not None  # the point's own run found one
    return answer


def _transfer(entries: Sequence[Mapping[str, Any]], parts: Mapping[str, Experiment]) -> list[dict[str, Any]]:
    """What the policy of each point costs on the other devices; `costs` is `None` where a device cannot run it."""
    devices = {entry["device"]: parts[entry["point"]] for entry in entries}
    rows = []
    for entry, (device, other) in itertools.product(entries, devices.items()):
        if entry["policy"] is None or device == entry["device"]:
            continue
        try:
            policy = Policy.from_doc(entry["policy"])
            costs = cost_report(other.network, other.cost_model, policy).totals
        except (InputError, ValueError):
            costs = None
        rows.append({"policy_of": entry["point"], "device": device, "costs": costs})
    return rows


def _write(folder: Path, document: Mapping[str, Any], runs: Sequence[Path]) -> None:
    rows = [
        {
            "point": entry["point"],
            "status": entry["status"],
            **{f"budget {key}": bound for key, bound in entry["budgets"].items()},
            "search_score": entry["search_score"],
            "test_score": entry["test_score"],
            **entry["costs"],
        }
        for entry in document["points"]
    ]
    write_text(folder / "front.csv", csv_text(rows))
    for entry in document["points"]:
        if entry["policy"] is not None:
            write_json(folder / "policies" / f"{entry['point']}.json", {"schema_version": 1, "policy": entry["policy"]})
    if len(runs) > 1:
        compare_runs(runs, folder)
    write_json(folder / DOCUMENT, document)
