"""Search strategies on one problem with one evaluator and the same number of evaluations.

    python scripts/compare_strategies.py benchmarks/comparison/*.toml [--evaluations 24] [--seeds 5] [--out FOLDER]
    python scripts/compare_strategies.py benchmarks/comparison/*.toml --report docs/images/strategies

Every strategy measures policies on the search split; its answer is the best by the score and is measured once on the
test split. The score is minus the loss, as in `haq bench regret --score loss`: a few hundred images give the loss in
finer steps than the accuracy; `--score metric` takes the experiment's metric. A strategy without randomness runs once.

Each run has a folder `<out>/<experiment>/<strategy>-<seed>` with its trials; one that is complete is not repeated, and
nothing is ever measured twice: measurements are cached. So a killed comparison is started again by the same command,
and more seeds are added by a larger `--seeds`. `--report` writes tables and plots of what is complete.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from haq.edges.documents import write_bytes, write_json, write_text
from haq.execute import CachingExecutor, LocalExecutor, MeasurementCache
from haq.experiment.experiment import Experiment
from haq.experiment.measurement_key import measurement_context
from haq.problem.problem import Problem
from haq.report.figures.regret import RegretPanel, plot_regret
from haq.report.figures.style import INK, MUTED, RUN_COLORS, new_figure, png, styled
from haq.search import SearchStrategy, make_strategy, run_search
from haq.search.journal import Journal
from haq.search.loop import Executor
from haq.values.policy import Policy
from haq.values.trial import Measurement, Trial

JOURNAL, RESULT = "trials.jsonl", "result.json"
PASSES = 400
"""Forward passes for the interactions of layers."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Contender:
    """A strategy, its options, and the predicted losses that its problem has."""

    label: str
    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "fisher"
    interactions: bool = False
    seeded: bool = True


def _exact(label: str, metric: str = "fisher", *, interactions: bool = False) -> Contender:
    return Contender(label, "ilp", {}, metric, interactions, seeded=False)


CONTENDERS = (
    Contender("uniform", "uniform", seeded=False),
    Contender("greedy", "greedy", seeded=False),
    *(_exact(f"ilp, {metric}", metric) for metric in ("fisher", "gradient", "hessian", "kl", "loss", "sqnr")),
    _exact("ilp, interactions", interactions=True),
    Contender("random", "random"),
    Contender("adaptive_ilp", "adaptive_ilp", {"target": "loss"}),
    Contender("evolutionary", "evolutionary"),
    Contender("bayesian, tpe", "bayesian"),
    Contender("bayesian, gp", "bayesian", {"sampler": "gp"}),
    Contender("actor_critic, published", "actor_critic"),
    Contender("actor_critic, modern", "actor_critic", {"variant": "modern"}),
    Contender("differentiable", "differentiable"),
)


class Timed(SearchStrategy):
    """A strategy, and the processor seconds of its proposals and its learning."""

    def __init__(self, make: Callable[[], SearchStrategy]) -> None:
        self.seconds = 0.0
        self._inner = self._timed(make)

    def suggest(self, count: int) -> list[Policy]:
        return self._timed(lambda: self._inner.suggest(count))

    def update(self, trials: Sequence[Trial]) -> None:
        self._timed(lambda: self._inner.update(trials))

    def _timed(self, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        try:
            return call()
        finally:
            self.seconds += time.process_time() - began


class LossScored:
    """An executor whose scores are minus the losses that are measured."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.capacity, self.submit = executor.capacity, executor.submit
        self.close = executor.close

    def next_completed(self) -> tuple[Policy, Measurement]:
        policy, measurement = self._executor.next_completed()
        return policy, replace(measurement, score=-measurement.details["loss"]) if measurement.ok else measurement

    def finished(self) -> list[tuple[Policy, Measurement]]:
        return []


class Case:
    """One experiment: its problem by each sensitivity metric, its evaluator, its runs."""

    def __init__(self, file: Path, out: Path, *, score: str, test_samples: int | None) -> None:
        self.experiment = Experiment.load(file, overrides=["threads=1"])
        self.name, self.folder, self._score = self.experiment.config.name, out / self.experiment.config.name, score
        self._test_samples = test_samples
        self._problems: dict[tuple[str, bool], Problem] = {}

    def problem(self, contender: Contender) -> Problem:
        """Costs, budgets, and the predicted losses that the contender asks for; measured once, kept in a file."""
        key = contender.metric, contender.interactions
        if key not in self._problems:
            self._problems[key] = self._problem(*key)
        return self._problems[key]

    def _problem(self, metric: str, interactions: bool) -> Problem:
        config, began = self.experiment.config, time.process_time()
        chosen = {"metric": metric, "interactions": PASSES if interactions else 0}
        experiment = self.experiment.at(
            config.model_copy(update={"sensitivity": config.sensitivity.model_copy(update=chosen)})
        )
        table = experiment.sensitivity(file=self.folder / f"{metric}.json")
        pairs = experiment.interactions(file=self.folder / "interactions.json")
        note = self.folder / f"{metric}{'-interactions' if interactions else ''}.seconds"
        if not note.exists():
            write_text(note, f"{time.process_time() - began:.2f}\n")
        return experiment.problem(table, pairs)

    @cached_property
    def executor(self) -> Executor:
        local = LocalExecutor(self.experiment.evaluator("search"))
        folder = self.experiment.cache_folder
        cache = None if folder is None else MeasurementCache(folder, measurement_context(self.experiment))
        executor = local if cache is None else CachingExecutor(local, cache)
        return LossScored(executor) if self._score == "loss" else executor

    def run(self, contender: Contender, seed: int, *, evaluations: int) -> None:
        """Search, choose, measure the choice on the test split; nothing if that is done."""
        folder = self.folder / f"{contender.label.replace(', ', '_')}-{seed}"
        if (folder / RESULT).exists():
            return
        problem = self.problem(contender)
        (folder / JOURNAL).unlink(missing_ok=True)
        strategy = Timed(lambda: self._strategy(contender, problem, seed))
        began = time.perf_counter()
        with Journal.create(folder / JOURNAL, {"contender": contender.label, "seed": seed}) as journal:
            trials = run_search(
                problem, strategy, self.executor, name=contender.strategy, max_trials=evaluations, journal=journal
            )
        wall = time.perf_counter() - began
        best = min(
            (trial for trial in trials if trial.measurement.ok),
            key=lambda trial: (-trial.measurement.score, trial.costs[problem.objective], trial.number),
        )
        correct, loss = self.test(best.policy)
        result = {
            "contender": contender.label,
            "seed": seed,
            "evaluations": len(trials),
            "score": best.measurement.score,
            "search": dict(best.measurement.details),
            "found_after": best.number + 1,
            "costs": dict(best.costs),
            "policy": best.policy.to_doc(),
            "key": best.policy.key,
            "test_accuracy": 100.0 * float(correct.mean()),
            "test_loss": loss,
            "curve": np.maximum.accumulate([trial.measurement.score for trial in trials]).tolist(),
            "strategy_processor_seconds": strategy.seconds,
            "evaluation_seconds": sum(trial.measurement.seconds for trial in trials),
            "wall_seconds": wall,
        }
        write_json(folder / RESULT, result)
        print(f"{self.name:28} {contender.label:26} seed {seed}  score {best.measurement.score:8.4f}", end="  ")
        print(f"test {result['test_accuracy']:.2f} %  strategy {strategy.seconds:.1f} s  wall {wall:.0f} s", flush=True)

    def _strategy(self, contender: Contender, problem: Problem, seed: int) -> SearchStrategy:
        options, model = contender.options, partial(self.experiment.mixed_model, problem)
        return make_strategy(contender.strategy, problem, seed=seed, options=options, model=model)

    def test(self, policy: Policy) -> tuple[np.ndarray, float]:
        """Which images of the test split are classified correctly, and the mean loss; measured once per policy."""
        file = self.folder / "test" / f"{policy.key}.npz"
        if not file.exists():
            experiment, split = self.experiment, self.experiment.data.test
            split = split if self._test_samples is None else split.head(self._test_samples)
            experiment.quantized.apply(policy)
            with torch.inference_mode():
                outputs = torch.cat([experiment.quantized(inputs) for inputs, _ in split.batches(250)])
            file.parent.mkdir(parents=True, exist_ok=True)
            correct = (outputs.argmax(1) == split.targets).numpy()
            np.savez_compressed(file, correct=correct, loss=float(experiment.loss(outputs, split.targets)))
        with np.load(file) as stored:
            return stored["correct"], float(stored["loss"])


def compare(cases: Sequence[Case], *, seeds: int, evaluations: int, only: Sequence[str]) -> None:
    """Seed by seed, so that a comparison which is cut short has the same number of runs of all."""
    for seed in range(seeds):
        for case in cases:
            for contender in CONTENDERS:
                if (seed == 0 or contender.seeded) and (not only or contender.label in only):
                    case.run(contender, seed, evaluations=evaluations)


def results(case: Case) -> dict[str, list[dict[str, Any]]]:
    """Contender -> its complete runs."""
    found: dict[str, list[dict[str, Any]]] = {contender.label: [] for contender in CONTENDERS}
    for path in sorted(case.folder.glob(f"*/{RESULT}")):
        result = json.loads(path.read_text())
        found[result["contender"]].append(result)
    return {name: runs for name, runs in found.items() if runs}


def rows(case: Case) -> list[dict[str, Any]]:
    """One row per contender, the best mean test accuracy first."""
    found = results(case)
    correct = {
        name: np.array([np.load(case.folder / "test" / f"{run['key']}.npz")["correct"] for run in runs], dtype=float)
        for name, runs in found.items()
    }
    best = max(correct, key=lambda name: float(correct[name].mean()))
    result = []
    for name, runs in found.items():
        low, high = behind(correct[best], correct[name]) if name != best else (0.0, 0.0)
        over_random = behind(correct[name], correct["random"]) if "random" in correct else (0.0, 0.0)
        tested = [run["test_accuracy"] for run in runs]
        result.append(
            {
                "strategy": name,
                "seeds": len(runs),
                "evaluations": max(run["evaluations"] for run in runs),
                "test_accuracy": float(np.mean(tested)),
                "worst": min(tested),
                "best": max(tested),
                "tests": tested,
                "behind_best": [low, high],
                "tied_with_best": low <= 0.0,
                "over_random": list(over_random),
                "test_loss": float(np.mean([run["test_loss"] for run in runs])),
                "search_loss": float(np.mean([run["search"]["loss"] for run in runs])),
                "strategy_processor_seconds": float(np.median([run["strategy_processor_seconds"] for run in runs])),
                "evaluation_seconds": float(np.median([run["evaluation_seconds"] for run in runs])),
            }
        )
    return sorted(result, key=lambda row: -row["test_accuracy"])


def behind(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """95 % interval, in points, of how much accuracy `second` `[seeds, images]` lacks: paired bootstrap.

    Images are drawn jointly for both, runs for each by itself.
    """
    rng = np.random.default_rng(0)
    differences = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        images = rng.multinomial(first.shape[1], np.full(first.shape[1], 1 / first.shape[1])) / first.shape[1]
        means = [float((runs[rng.integers(len(runs), size=len(runs))] @ images).mean()) for runs in (first, second)]
        differences[index] = 100.0 * (means[0] - means[1])
    low, high = np.percentile(differences, (2.5, 97.5))
    return float(low), float(high)


def table(entries: Iterable[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| Strategy | Runs | Test accuracy, % [worst, best] | Behind the best, 95 % | Test loss | Search loss | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in entries:
        spread = f" [{row['worst']:.2f}, {row['best']:.2f}]" if row["seeds"] > 1 else ""
        low, high = row["behind_best"]
        gap = "the best" if low == high == 0 else f"{low:.2f} to {high:.2f}{', tie' if row['tied_with_best'] else ''}"
        figures = f"{row['test_loss']:.4f} | {row['search_loss']:.4f} | {row['strategy_processor_seconds']:.1f}"
        lines.append(f"| {row['strategy']} | {row['seeds']} | {row['test_accuracy']:.2f}{spread} | {gap} | {figures} |")
    return "\n".join(lines) + "\n"


@styled
def plot_tests(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Test accuracy of every run, one panel per experiment, strategies sorted by their mean."""
    figure = new_figure(0.8 + 0.24 * max(map(len, found.values())))
    for axes, (name, entries) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for height, row in enumerate(reversed(entries)):
            color = RUN_COLORS[0] if row["tied_with_best"] else MUTED
            axes.scatter(row["tests"], [height] * len(row["tests"]), s=14, color=color, alpha=0.5, linewidth=0)
            axes.plot([row["test_accuracy"]] * 2, [height - 0.3, height + 0.3], color=INK, linewidth=1.4)
        axes.set_yticks(range(len(entries)), [row["strategy"] for row in reversed(entries)])
        axes.set_title(f"{name} (blue: ties with the best)")
        axes.set_xlabel("test accuracy (%); line: mean of the runs")
        shown = sorted(row["test_accuracy"] for row in entries)
        axes.set_xlim(left=max(min(shown), shown[len(shown) // 2] - 8.0) - 0.5)
    return figure


def curves(case: Case, *, evaluations: int) -> RegretPanel:
    """How far the best score so far lies behind the best that any run found."""
    found = {name: runs for name, runs in results(case).items() if max(run["evaluations"] for run in runs) > 1}
    top = max(run["score"] for runs in found.values() for run in runs)

    def padded(curve: Sequence[float]) -> list[float]:
        return [*curve, *[curve[-1]] * (evaluations - len(curve))]

    panels = {name: top - np.array([padded(run["curve"]) for run in runs]) for name, runs in found.items()}
    return RegretPanel(case.name, "search split", panels)


def report(cases: Sequence[Case], folder: Path, *, evaluations: int, score: str) -> None:
    found = {case.name: rows(case) for case in cases}
    write_json(folder / "comparison.json", found)
    write_text(folder / "comparison.md", "\n".join(f"{name}\n\n{table(entries)}" for name, entries in found.items()))
    write_bytes(folder / "comparison.png", png(plot_tests(found)))
    for case in cases:
        figure = plot_regret([curves(case, evaluations=evaluations)], unit=score, title=case.name)
        write_bytes(folder / f"convergence_{case.name}.png", png(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", type=Path, nargs="+")
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--test-samples", type=int, help="of the test split, from its start; all, if left out")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--score", choices=("loss", "metric"), default="loss")
    parser.add_argument(
        "--only", nargs="+", default=[], help="labels of strategies", choices=[c.label for c in CONTENDERS]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--report", type=Path, help="write tables and plots of what is complete into this folder")
    args = parser.parse_args()
    cases = [Case(file, args.out, score=args.score, test_samples=args.test_samples) for file in args.experiments]
    if args.report is None:
        compare(cases, seeds=args.seeds, evaluations=args.evaluations, only=args.only)
    else:
        report(cases, args.report, evaluations=args.evaluations, score=args.score)


if __name__ == "__main__":
    main()
