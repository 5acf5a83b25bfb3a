"""Writes a run folder as `haq search` does, from made-up numbers; equal arguments give equal bytes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("int2", "int3", "int4", "int8")
ACTIVATIONS = ("int4", "int8")
METRICS = ("latency_ms", "energy_mj", "size_bytes", "peak_activation_bytes", "bops", "average_weight_bits")


def layer_names(count: int) -> list[str]:
    if count == 22:
        blocks = [f"stage{s}.{b}" for s in (1, 2, 3) for b in (0, 1, 2)]
        names = ["conv1"]
        for block in blocks:
            names += [f"{block}.conv1", f"{block}.conv2"]
            names += [f"{block}.shortcut.0"] if block in ("stage2.0", "stage3.0") else []
        return [*names, "fc"]
    return (
        ["fc"] if count == 1 else ["features.0.0", *(f"features.{i}.conv.{i % 3}.0" for i in range(1, count - 1)), "fc"]
    )


class FakeNetwork:
    """Layers with sizes and sensitivities; prices and scores policies."""

    def __init__(
        self, count: int, *, seed: int, names: list[str] | None = None, metrics: tuple[str, ...] = METRICS
    ) -> None:
        self.names, self.metrics = names or layer_names(count), metrics
        self.rng = np.random.default_rng(seed)
        depth = np.linspace(0, 1, count)
        self.params = (300 * 40 ** (1.3 * depth) * self.rng.uniform(0.5, 1.5, count)).round() + 90
        self.macs = (2.4e6 * (1 - 0.7 * depth) * self.rng.uniform(0.4, 1.6, count)).round()
        self.scale = 0.08 * np.exp(self.rng.normal(0, 1.1, count)) * (1.2 - depth)

    def sensitivity(self, layer: int, kind: str, name: str) -> float:
        bits = int(name[3:])
        return float(self.scale[layer] * (1.0 if kind == "weight" else 0.35) * 4.0 ** (2 - bits))

    def layer_costs(self, layer: int, weight: str, activation: str) -> dict[str, float]:
        w, a = int(weight[3:]), int(activation[3:])
        macs, params = float(self.macs[layer]), float(self.params[layer])
        costs = {
            "latency_ms": 0.002 + macs / (1e9 * (1 if max(w, a) > 4 else 2)) + params * w / 8 / 2e6,
            "energy_mj": macs * w * a * 2e-11 + params * w * 1e-9,
            "size_bytes": params * w / 8 + 64,
            "bops": macs * w * a,
        }
        return {metric: value for metric, value in costs.items() if metric in self.metrics}

    def switches(self, policy: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
        found = []
        for producer, consumer in zip(self.names, self.names[1:], strict=False):
            written, wanted = policy[producer][1], policy[consumer][1]
            if written != wanted:
                costs = {m: v for m, v in (("latency_ms", 0.0011), ("energy_mj", 2e-5)) if m in self.metrics}
                found.append({"tensor": f"{producer}_out", "from": producer, "to": [consumer], "written": written,
                              "wanted": wanted, "costs": costs})  # fmt: skip
        return found

    def costs(self, policy: dict[str, tuple[str, str]]) -> dict[str, float]:
        total = dict.fromkeys(
            (m for m in self.metrics if m not in ("peak_activation_bytes", "average_weight_bits")), 0.0
        )
        loss = 0.0
        for i, name in enumerate(self.names):
            for metric, value in self.layer_costs(i, *policy[name]).items():
                total[metric] += value
            loss += sum(self.sensitivity(i, k, f) for k, f in zip(("weight", "activation"), policy[name], strict=True))
        for switch in self.switches(policy):
            for metric, value in switch["costs"].items():
                total[metric] += value
        if "peak_activation_bytes" in self.metrics:
            total["peak_activation_bytes"] = 25088.0 * max(int(a[3:]) for _, a in policy.values()) / 8
        bits = [int(policy[name][0][3:]) for name in self.names]
        total["average_weight_bits"] = float(np.dot(bits, self.params) / self.params.sum())
        return total | {"sensitivity": loss}

    def score(self, loss: float) -> float:
        return round(max(10.0, 92.78 - 9.0 * loss + float(self.rng.normal(0, 0.06))), 2)

    def greedy(self, metric: str, budget: float) -> dict[str, tuple[str, str]]:
        """From all 8 bit, lower what costs the least sensitivity per unit of `metric` until the budget is met."""
        policy = dict.fromkeys(self.names, ("int8", "int8"))
        choices = [(w, a) for w in FORMATS for a in ACTIVATIONS]
        kinds = ("weight", "activation")
        loss = [{c: sum(self.sensitivity(i, k, f) for k, f in zip(kinds, c, strict=True)) for c in choices}
                for i in range(len(self.names))]  # fmt: skip
        cost = [{c: self.layer_costs(i, *c)[metric] for c in choices} for i in range(len(self.names))]
        moves = sorted(
            ((loss[i][c] - loss[i][choices[-1]]) / (cost[i][choices[-1]] - cost[i][c]), name, c)
            for i, name in enumerate(self.names)
            for c in choices
            if cost[i][c] < cost[i][choices[-1]]
        )
        for _, name, choice in moves:
            if self.costs(policy)[metric] <= budget:
                break
            if cost[self.names.index(name)][choice] < cost[self.names.index(name)][policy[name]]:
                policy[name] = choice
        return policy


def _doc(policy: dict[str, tuple[str, str]]) -> dict[str, Any]:
    return {name: {"weight_bits": int(w[3:]), "activation_bits": int(a[3:])} for name, (w, a) in policy.items()}


def write_fake_run(
    path: Path,
    *,
    layers: int = 22,
    seed: int = 0,
    name: str = "resnet20_t4_ilp",
    title: str = "NVIDIA T4 (tensor cores, int4 and int8)",
    names: list[str] | None = None,
    metrics: tuple[str, ...] = METRICS,
    budget_share: float = 0.55,
    trials: int = 40,
    baselines: bool = True,
    failed_trials: int = 0,
    score: str = "accuracy",
) -> Path:
    """A run folder in `path`: `layers` layers, one budget on the first of `metrics`."""
    net = FakeNetwork(layers, seed=seed, names=names, metrics=metrics)
    metric = metrics[0]
    eight = net.costs(dict.fromkeys(net.names, ("int8", "int8")))
    least = net.costs(dict.fromkeys(net.names, ("int2", "int4")))[metric]
    budget = least + budget_share * (eight[metric] - least)
    best = net.greedy(metric, budget)

    def entry(label: str, source: str, policy: dict[str, tuple[str, str]], *, tested: bool = False) -> dict[str, Any]:
        costs = net.costs(policy)
        value = net.score(costs["sensitivity"])
        test = {"test_score": round(value - 0.3, 2) if tested else None, "test_noise": 0.27 if tested else None}
        return {"name": label, "source": source, "policy": _doc(policy), "costs": costs, "score": value, **test}

    answer = entry("answer", "ilp", best, tested=True)
    uniform = [dict.fromkeys(net.names, (w, a)) for w in FORMATS for a in ACTIVATIONS]
    references = [entry(f"w{p[net.names[0]][0][3:]}a{p[net.names[0]][1][3:]}", "uniform", p) for p in uniform]
    within = [r for r in references if r["costs"][metric] <= budget]
    base = max(within, key=lambda r: r["score"])
    base = base | {"test_score": round(base["score"] - 0.2, 2), "test_noise": 0.28}
    greedy = dict(best) | {net.names[0]: ("int4", "int4")}
    rows = []
    for number in range(trials):
        policy = {n: (FORMATS[net.rng.integers(4)], ACTIVATIONS[net.rng.integers(2)])
                  if net.rng.random() < 0.05 * (number + 1) / 4 else best[n] for n in net.names}  # fmt: skip
        one = entry("", "ilp", policy if number else best)
        ok = number < trials - failed_trials
        measurement = {"score": one["score"] if ok else None, "fidelity": "ptq", "seconds": 0.8, "details": {}}
        measurement |= {} if ok else {"error": "the loss is not finite"}
        rows.append({"number": number, "source": "ilp", "policy": one["policy"], "costs": one["costs"],
                     "measurement": measurement})  # fmt: skip
    breakdown = {
        "layers": [
            {"name": n, "precision": f"w{best[n][0][3:]}a{best[n][1][3:]}", "costs": net.layer_costs(i, *best[n]),
             "macs": float(net.macs[i]), "params": float(net.params[i])}
            for i, n in enumerate(net.names)
        ],
        "switches": net.switches(best),
        "joins": [] if layers < 5 else [
            {"name": "add_2", "owner": net.names[4], "other": net.names[2], "written": "int8", "wanted": "int4",
             "costs": {"latency_ms": 0.0008} if "latency_ms" in metrics else {}}],
        "peak": {"step": net.names[0], "bytes": 25088.0},
    }  # fmt: skip
    curve = []
    for share in np.linspace(0.1, 1.0, 10):
        bound = least + float(share) * (eight[metric] - least)
        curve.append({"budget": bound, "objective": net.costs(net.greedy(metric, bound))["sensitivity"]})
    curve.insert(0, {"budget": 0.9 * least, "objective": None})
    experiment = {"schema_version": 1, "name": name, "seed": seed,
                  "model": {"name": "resnet20", "checkpoint": "checkpoints/resnet20.safetensors", "options": {}},
                  "data": {"name": "fashion_mnist", "options": {}}, "device": {"profile": "nvidia_t4"},
                  "space": {"weights": list(FORMATS), "activations": list(ACTIVATIONS)},
                  "sensitivity": {"metric": "gradient", "samples": 512},
                  "search": {"strategy": "ilp", "max_trials": trials, "options": {}},
                  "evaluator": {"kind": "ptq", "samples": 2000, "metric": score, "loss": "cross_entropy"},
                  "quantization": {"weight_calibration": "mse", "calibration_samples": 512},
                  "objective": "sensitivity", "budgets": {metric: f"{100 * budget / eight[metric]:.0f}%"}}  # fmt: skip
    result = {
        "schema_version": 1, "experiment": experiment,
        "device": {"name": "nvidia_t4", "title": title, "metrics": list(metrics),
                   "provenance": {"source": "NVIDIA T4 data sheet", "method": "derived", "date": "2025-11-20"}},
        "objective": "sensitivity", "budgets": {metric: budget}, "status": "optimal",
        "bound": answer["costs"]["sensitivity"], "predicted_optimum": answer["costs"]["sensitivity"],
        "metric": score, "score_unit": "%",
        "float": {"search_score": 92.78, "test_score": 92.61}, "score_noise": 0.58,
        "answer": answer,
        "baselines": {"uniform": base, "greedy": entry("greedy", "greedy", greedy, tested=True)} if baselines
        else {"uniform": None, "greedy": None},
        "verdict": f"{answer['score']:.2f} % on the search split, "
        f"{answer['score'] - base['score']:+.2f} points against the best uniform policy within the same budget.",
        "references": references, "trials": trials,
        "seconds": {"trace": 0.7, "sensitivity": 3.4, "solve": 0.12, "evaluate": 31.5},
        "breakdown": breakdown, "marginal": {metric: {"budget": budget, "points": curve}},
        "command": f"haq search experiments/{name}.toml",
        "warnings": ["calibration used 512 of 50000 training samples"],
    }  # fmt: skip
    provenance = {"command": f"haq search experiments/{name}.toml", "date": "2025-11-21T11:00:00+00:00", "seed": seed,
                  "source": "ilp", "versions": {"haq": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.3.5"},
                  "hashes": {"model": "9f" * 8, "data": "aa" * 8, "profile": "3c" * 8}, "device": result["device"],
                  "quantization": {"weight_granularity": "channel", "weight_scheme": "symmetric",
                                   "activation_scheme": "affine", "weight_calibration": "mse"},
                  "config": experiment}  # fmt: skip
    policy = {"schema_version": 1, "name": name, "policy": answer["policy"], "predicted": answer["costs"],
              "measured": {"search_score": answer["score"], "test_score": answer["test_score"],
                           "float_search_score": 92.78, "float_test_score": 92.61, "metric": score, "unit": "%"},
              "budgets": {metric: budget}, "provenance": provenance}  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    (path / "result.json").write_text(json.dumps(result, indent=1))
    (path / "policy.json").write_text(json.dumps(policy, indent=1))
    header = {"schema_version": 1, "setup": {"signature": "abc"}}
    (path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [header, *rows]))
    with (path / "sensitivity.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["layer", "kind", "format", "sensitivity"])
        for i, n in enumerate(net.names):
            for kind, formats in (("weight", FORMATS), ("activation", ACTIVATIONS)):
                table.writerows([n, kind, f, net.sensitivity(i, kind, f)] for f in formats)
    return path
