"""The actor-critic search and the exact optimum side by side, on HAQ's published latency table.

    python scripts/reproduce_haq_rl.py haq_mobilenetv2_latency_table.json [--episodes 300] [--seeds 0]

The file holds the latency of MobileNetV2 on BISMO (Wang et al., HAQ, CVPR 2019), in cycles by layer, weight bits and
activation bits. The accuracy is a model of ours, additive and known: layer i loses a_i * 4^-w + b_i * 4^-a points with
w bits for its weights and a bits for its activations, where a_i and b_i are log-uniform from 3 to 100 (numpy's
default_rng, seed 0). Bits are 2 to 8; the activations of the first layer stay at 8. The searches learn the model from
its answers alone; the exact optimum knows it. Ends with exit code 1 if the optimum is not proven or a search beats it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from haq.edges.documents import read_json
from haq.problem.problem import Problem
from haq.search import RandomSearch, SearchStrategy
from haq.search.strategies.actor_critic_modern import ModernActorCritic
from haq.search.strategies.actor_critic_published import PublishedActorCritic
from haq.solve.solve import solve
from haq.testing import play

FEWEST, MOST = 2, 8
SLACK = 1e-9


def problem_document(data: Mapping[str, Any], *, limit: float) -> dict[str, Any]:
    """Least points lost within `limit` of the cycles at 8/8."""
    rng = np.random.default_rng(0)
    factors = 10 ** rng.uniform(np.log10(3), 2, (len(data["table"]), 2))
    layers = []
    for index, (cycles, (of_weights, of_activations)) in enumerate(zip(data["table"], factors.tolist(), strict=True)):
        choices = [
            {
                "weight_bits": weight,
                "activation_bits": activation,
                "sensitivity": of_weights * 4.0**-weight + of_activations * 4.0**-activation,
                "costs": {"cycles": cycles[weight - 1][activation - 1]},
            }
            for weight in range(FEWEST, MOST + 1)
            for activation in range(MOST if index == 0 else FEWEST, MOST + 1)
        ]
        layers.append({"name": f"layer{index:02d}", "choices": choices})
    at_eight = sum(table[MOST - 1][MOST - 1] for table in data["table"])
    budgets = {"cycles": limit * at_eight}
    return {"schema_version": 1, "layers": layers, "budgets": budgets, "objective": "sensitivity"}


def searches() -> dict[str, Callable[..., SearchStrategy]]:
    """The agent sees the scores, never the model: it is not seeded with the exact solution."""
    return {
        "published": PublishedActorCritic,
        "modern": ModernActorCritic,
        "random": RandomSearch,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="haq_mobilenetv2_latency_table.json")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--searches", nargs="+", choices=searches(), help="all, if left out")
    parser.add_argument("--limit", type=float, default=0.60)
    args = parser.parse_args()
    problem = Problem.from_doc(problem_document(read_json(args.data), limit=args.limit))
    exact = solve(problem)
    optimum, holds = exact.values[0], exact.status == "optimal"
    cycles = problem.costs(problem.policy(exact.assignments[0]))["cycles"] / problem.budgets["cycles"]
    line = "{:13} {:>5} {:>12} {:>12} {:>19} {:>14} {:>8}"
    print(line.format("search", "seed", "evaluations", "points lost", "gap to the optimum", "of the budget", "seconds"))
    print(line.format("exact optimum", "", 0, f"{optimum:.3f}", "0.000", f"{cycles:.4f}", f"{exact.seconds:.2f}"))
    for name, seed in itertools.product(args.searches or searches(), args.seeds):
        began = time.perf_counter()
        trials = play(problem, searches()[name](problem, seed=seed), trials=args.episodes)
        best = min(trials, key=lambda trial: trial.costs["sensitivity"]).costs
        lost, spent = best["sensitivity"], best["cycles"] / problem.budgets["cycles"]
        holds &= lost >= optimum - SLACK
        figures = f"{lost:.3f}", f"{lost - optimum:.3f}", f"{spent:.4f}", f"{time.perf_counter() - began:.0f}"
        print(line.format(name, seed, len(trials), *figures), flush=True)
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
