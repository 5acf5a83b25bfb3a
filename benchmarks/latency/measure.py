"""How well do measured profiles predict, and what does a search on one get? All figures of docs/profiling.md.

    python benchmarks/latency/measure.py --out runs/latency --images IMAGES     # about 15 minutes on an idle machine
    python benchmarks/latency/measure.py --out runs/latency-quick --quick       # does it run? two minutes

Needs `pip install 'haq[efficientnet,onnx]'` and an idle machine: it says so where the noise is too high. Every step
writes its result into the folder; started again, it goes on with what is missing. `summary.md` has the tables.

- profile, validate: ResNet-20, ResNet-18 and EfficientNet-Lite0, policies that the profile was not fitted on.
- searches: EfficientNet-Lite0, random sensitivities and budgets; how far is the policy that is found over its budget
  when it is measured: searched without switching costs, with them, and re-measured (`search.remeasure`)?
- repeats: EfficientNet-Lite0, the same policies timed two at a time, again and again: in milliseconds, and at one pace.
- front: EfficientNet-Lite0, its real sensitivities; policies found with and without switching costs, latency against
  fidelity, all measured. `front.png`.

IMAGES is a folder of images; without it, the three photographs that scikit-learn and matplotlib bring along.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from haq import Experiment, Policy
from haq.edges.progress import Silent
from haq.problem.problem import Problem
from haq.profiling.machine import Settings, open_runtime, profile_machine
from haq.profiling.policies import anchors, mixed_policies
from haq.profiling.runtimes.choice import RuntimeChoice
from haq.profiling.timing import Rounds, measure_rounds, medians, paced
from haq.profiling.validate import validate_profile
from haq.runs.remeasure import Stopwatch, profiled_anchors, remeasure
from haq.solve.solve import solve

ROOT = Path(__file__).parents[2]
EXPERIMENTS = {
    "resnet20": (ROOT / "experiments" / "resnet20_cortex_m7_ilp.toml", 30),
    "resnet18": (ROOT / "benchmarks" / "latency" / "resnet18.toml", 10),
    "efficientnet_lite0": (ROOT / "benchmarks" / "latency" / "efficientnet_lite0.toml", 20),
}
"""Name -> file, and rounds of repeats."""
LITE0, LATENCY, RUNTIME = "efficientnet_lite0", "latency_ms", RuntimeChoice()
ON_LITE0 = ("searches", "repeats", "front")
"""The steps that need its profile."""
TIMED = "device.profile='{}'", "space.weights=['int8','fp32']", "space.activations=['int8','fp32']"
FREE = "space.layers={}", "space.first_last=[]", "cache.enabled=false"


class Show(Silent):
    """Stages as lines, with the time."""

    def stage(self, name: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {name}", flush=True)

    def note(self, text: str) -> None:
        print(f"          {text}", flush=True)


def step(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The JSON document at `path`, made if it is not there; it gets the seconds that it took."""
    if not path.exists():
        print(f"{time.strftime('%H:%M:%S')}  {path.name}", flush=True)
        start = time.perf_counter()
        document = make()
        path.write_text(json.dumps({**document, "seconds": time.perf_counter() - start}, indent=1))
    return json.loads(path.read_text())


def profile(folder: Path, name: str, *, policies: int, rounds: int) -> dict[str, Any]:
    out = folder / f"{name}.toml"
    settings = Settings(RUNTIME, policies, rounds)
    resume = out.with_suffix(".measurements.jsonl").exists()
    command = f"python benchmarks/latency/measure.py, step {name}"
    experiment = Experiment.load(EXPERIMENTS[name][0])
    return profile_machine(experiment, out, settings=settings, resume=resume, command=command, show=Show())


def validate(folder: Path, name: str, *, policies: int, rounds: int) -> dict[str, Any]:
    experiment = Experiment.load(EXPERIMENTS[name][0])
    out = folder / f"{name}-validation"
    return validate_profile(
        experiment, folder / f"{name}.toml", policies=policies, rounds=rounds, seed=1, out=out, show=Show()
    )


def without_switches(problem: Problem) -> Problem:
    """The same problem with conversions at no cost."""
    document = problem.to_doc()
    for kind in ("tensors", "edges"):
        for entry in document.get(kind, []):
            entry["costs"] = (np.asarray(entry["costs"]) * 0.0).tolist()
    return Problem.from_doc(document)


def best(problem: Problem, bound: float) -> Policy:
    problem = problem.with_budgets({**problem.budgets, LATENCY: bound})
    return problem.policy(solve(problem).assignments[0])


def drawn(problem: Problem, rng: random.Random) -> Problem:
    """Random sensitivities: int8 loses something in each layer, float nothing."""
    document = problem.to_doc()
    for layer in document["layers"]:
        loss = rng.lognormvariate(0.0, 1.0)
        for choice in layer["choices"]:
            choice["sensitivity"] = loss if choice["weight_bits"] == 8 else 0.0
    return Problem.from_doc(document)


def searches(folder: Path, *, draws: int) -> dict[str, Any]:
    overrides = [text.format(folder / f"{LITE0}.toml") for text in TIMED]
    experiment = Experiment.load(EXPERIMENTS[LITE0][0], overrides=[*overrides, *FREE])
    runtime = open_runtime(experiment, RUNTIME)
    measured = experiment.profile.measured
    assert measured is not None
    both = profiled_anchors(experiment)
    watch = Stopwatch(lambda: runtime, folder / "searches.times.json", both, threads=1)
    ends = list(both.values())
    plain, rows, policies = experiment.problem(None), [], []
    for index in range(draws):
        problem = drawn(plain, random.Random(index))
        bound = ends[1] + (index + 0.5) / draws * (ends[0] - ends[1])
        problem = problem.with_budgets({LATENCY: bound})
        blind, aware = best(without_switches(problem), bound), best(problem, bound)
        _, state = remeasure(problem, watch, count=2, guard_percent=measured.guard_percent, show=Silent())
        within = [key for key, ms in state.measured.items() if ms <= bound]
        known = {policy.key: policy for policy in watch.policies}
        confirmed = min((known[key] for key in within), key=lambda p: problem.costs(p)["sensitivity"], default=None)
        chosen = {"without switching costs": blind, "with": aware, "re-measured": confirmed}
        policies += [policy for policy in chosen.values() if policy is not None]
        rows.append(
            {
                "budget_ms": bound,
                "turns": state.turns,
                "stable": state.stable,
                "timed": len(state.measured),
                "policies": {name: None if p is None else p.key for name, p in chosen.items()},
                "sensitivity": {name: p and problem.costs(p)["sensitivity"] for name, p in chosen.items()},
            }
        )
        Show().note(f"search {index + 1} of {draws}: {state.turns} turns, {len(state.measured)} policies timed")
    again = Stopwatch(lambda: runtime, folder / "searches.verified.json", both, threads=1)
    unique = list(dict.fromkeys(policies))
    times = {policy.key: ms for policy, ms in zip(unique, again.measure(unique), strict=True)}
    for row in rows:
        row["over_percent"] = {
            name: None if key is None else 100 * (times[key] / row["budget_ms"] - 1)
            for name, key in row["policies"].items()
        }
    names = list(rows[0]["over_percent"])
    over = {name: [ms for row in rows if (ms := row["over_percent"][name]) is not None] for name in names}
    summary = {
        name: {"found": len(values), "mean": float(np.mean(values)), "worst": float(np.max(values))}
        for name, values in over.items()
        if values
    }
    return {"float_ms": ends[0], "int8_ms": ends[1], "pace": again.pace, "over_budget_percent": summary, "rows": rows}


def repeatability(folder: Path, *, batches: int, rounds: int = 20) -> dict[str, Any]:
    """How well do times of small batches repeat? Standard deviation and worst, in per cent of a policy's mean."""
    overrides = [text.format(folder / f"{LITE0}.toml") for text in TIMED]
    experiment = Experiment.load(EXPERIMENTS[LITE0][0], overrides=[*overrides, *FREE])
    runtime = open_runtime(experiment, RUNTIME)
    names = experiment.network.layer_names
    ends = {policy.key: runtime.prepare(policy) for policy in anchors(names, runtime.low)}
    mixed = {policy.key: runtime.prepare(policy) for policy in mixed_policies(names, runtime.low, 6, seed=5)}
    keys, found = list(mixed), {}
    for batch in range(batches):
        pair = keys[batch % 3 * 2 :][:2]
        taken: Rounds = []
        measure_rounds(ends | {key: mixed[key] for key in pair}, rounds, threads=1, done=taken.append)
        for name, times in (
            ("milliseconds", medians(taken)),
            ("at one pace", medians(paced(taken, list(ends), ms=1.0))),
        ):
            for key in pair:
                found.setdefault(name, {}).setdefault(key, []).append(times[key])
    off = {
        name: 100 * np.concatenate([np.asarray(own) / np.mean(own) - 1 for own in times.values()])
        for name, times in found.items()
    }
    return {name: {"deviation": float(np.std(v)), "worst": float(np.abs(v).max())} for name, v in off.items()}


def photographs(folder: Path) -> Path:
    """The photographs that scikit-learn and matplotlib bring along."""
    import sklearn

    here = folder / "photographs"
    here.mkdir(exist_ok=True)
    for path in sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg")):
        shutil.copy(path, here)
    shutil.copy(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg", here)
    return here


def front(folder: Path, images: Path, *, points: int, crops: int) -> dict[str, Any]:
    overrides = [text.format(folder / f"{LITE0}.toml") for text in TIMED]
    data = f"data.options={{folder='{images}', crops={crops}, train=24, search=8, test=48, classes=1000}}"
    sizes = "sensitivity.samples=64", "quantization.calibration_samples=64"
    experiment = Experiment.load(ROOT / "experiments" / f"{LITE0}.toml", overrides=[*overrides, data, *sizes, *FREE])
    runtime = open_runtime(experiment, RUNTIME)
    both = profiled_anchors(experiment)
    ends = list(both)
    high, low = both.values()
    start = time.perf_counter()
    table = experiment.sensitivity(file=folder / "front.sensitivity.json")
    problem = experiment.problem(table)
    bounds = [low + (index + 0.5) / points * (high - low) for index in range(points)]
    found = {
        "with switching costs": [best(problem, bound) for bound in bounds],
        "without": [best(without_switches(problem), bound) for bound in bounds],
        "all float": [ends[0]],
        "uniform int8": [ends[1]],
    }
    seconds = time.perf_counter() - start
    policies = list(dict.fromkeys(policy for group in found.values() for policy in group))
    rounds = 5 if points < 4 else 60
    again = Stopwatch(lambda: runtime, folder / "front.verified.json", both, threads=1, rounds=rounds)
    times = dict(zip((policy.key for policy in policies), again.measure(policies), strict=True))
    evaluator = experiment.evaluator("test")
    scores = {policy.key: evaluator(policy) for policy in policies}
    rows = [
        {
            "searched": group,
            "ms": times[policy.key],
            "agreement": scores[policy.key].score,
            "kl": scores[policy.key].details["loss"],
            "int8_layers": sum(precision == runtime.low for precision in policy.values()),
        }
        for group, members in found.items()
        for policy in members
    ]
    return {
        "images": len(experiment.given_data.test),
        "search_seconds": seconds,
        "rows": rows,
        "beaten": beaten(rows),
    }


def beaten(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each policy found with switching costs, the fastest one found without of no larger divergence."""
    result = []
    for row in rows:
        if row["searched"] != "with switching costs":
            continue
        rivals = [r["ms"] for r in rows if r["searched"] in ("without", "all float") and r["kl"] <= row["kl"]]
        result.append({"ms": row["ms"], "kl": row["kl"], "fastest_without_ms": min(rivals, default=None)})
    return result


def draw(document: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True, layout="constrained")
    styles = {
        "with switching costs": ("o-", "tab:blue"),
        "without": ("s", "tab:orange"),
        "all float": ("^", "black"),
        "uniform int8": ("v", "black"),
    }
    for axis, key, label in zip(axes, ("kl", "agreement"), ("KL divergence [nats]", "agreement [%]"), strict=True):
        for name, (style, color) in styles.items():
            rows = sorted((r for r in document["rows"] if r["searched"] == name), key=lambda row: row["ms"])
            axis.plot([r["ms"] for r in rows], [r[key] for r in rows], style, color=color, label=name, ms=5)
        axis.set(xlabel="measured latency [ms]", ylabel=f"{label} with the float model")
        axis.grid(alpha=0.3)
    axes[0].legend(title="searched")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def summarise(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| Experiment | float, int8 | pace | noise floor | model | mean | 90th percentile | worst | Spearman |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for name in EXPERIMENTS:
        found = results.get(f"{name}-validation")
        models = {**found["models"], "this profile, pace and all": found["as_timed"]} if found else {}
        for model, row in models.items():
            ends = f"{found['float_ms']:.3g}, {found['low_ms']:.3g} ms | {100 * (found['pace'] - 1):+.1f} %"
            lines.append(
                f"| `{name}` | {ends} | {found['noise_floor_percent']:.2f} % | {model} | {row['mean']:.1f} % | "
                f"{row['p90']:.1f} % | {row['worst']:.1f} % | {row['spearman']:.3f} |"
            )
    if searched := results.get("searches"):
        lines += ["", "| searched | found | over budget, mean | worst |", "|---|---|---|---|"]
        for name, row in searched["over_budget_percent"].items():
            lines.append(f"| {name} | {row['found']} | {row['mean']:+.1f} % | {row['worst']:+.1f} % |")
        pace = 100 * (searched["pace"] - 1)
        lines += ["", f"timed again, float and int8 took {pace:+.1f} % of the profile's; latencies are at its pace"]
    if repeated := results.get("repeats"):
        lines += ["", "| repeated | standard deviation | worst |", "|---|---|---|"]
        for name in ("milliseconds", "at one pace"):
            lines.append(f"| {name} | {repeated[name]['deviation']:.1f} % | {repeated[name]['worst']:.1f} % |")
    if fronts := results.get("front"):
        lines += ["", "| searched | ms | agreement | KL | int8 layers |", "|---|---|---|---|---|"]
        for row in fronts["rows"]:
            lines.append(
                f"| {row['searched']} | {row['ms']:.2f} | {row['agreement']:.1f} % | {max(0.0, row['kl']):.4f} | "
                f"{row['int8_layers']} |"
            )
        pairs = [row for row in fronts["beaten"] if row["fastest_without_ms"]]
        gains = [100 * (row["fastest_without_ms"] / row["ms"] - 1) for row in pairs]
        lines += ["", f"faster than the fastest of no larger divergence found without: {np.round(gains, 1).tolist()} %"]
    lines += ["", *(f"{name}: {document['seconds']:.0f} s" for name, document in results.items())]
    own = [results[name]["seconds"] for name in (LITE0, f"{LITE0}-validation") if name in results]
    if len(own) == 2 and "front" in results:
        total = sum(own) + results["front"]["search_seconds"]
        lines.append(f"{LITE0}: profile, validation and searches {total:.0f} s")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*EXPERIMENTS, *ON_LITE0], help="these steps alone")
    parser.add_argument("--quick", action="store_true", help="few policies and rounds: does it run?")
    arguments = parser.parse_args()
    folder: Path = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    quick, only = arguments.quick, arguments.only or [*EXPERIMENTS, *ON_LITE0]
    results: dict[str, dict[str, Any]] = {}

    def run(name: str, make: Callable[[], dict[str, Any]]) -> None:
        results[name] = step(folder / f"{name}.json", make)
        (folder / "summary.md").write_text(summarise(results))

    for name, (_, rounds) in EXPERIMENTS.items():
        if name not in only and not (name == LITE0 and set(ON_LITE0) & set(only)):
            continue
        repeats = 3 if quick else rounds
        run(name, partial(profile, folder, name, policies=5 if quick else 12, rounds=repeats))
        if name in only:
            count = 4 if quick else 40
            run(f"{name}-validation", partial(validate, folder, name, policies=count, rounds=repeats))
    if "searches" in only:
        run("searches", partial(searches, folder, draws=2 if quick else 20))
    if "repeats" in only:
        run("repeats", partial(repeatability, folder, batches=3 if quick else 24))
    if "front" in only:
        images = (arguments.images or photographs(folder)).resolve()
        run("front", partial(front, folder, images, points=2 if quick else 8, crops=2 if quick else 6))
        draw(results["front"], folder / "front.png")
    print((folder / "summary.md").read_text())


if __name__ == "__main__":
    main()
