"""Find the bits that HAQ's released policy leaves unused within its own latency limit.

    python scripts/reproduce_haq.py haq_mobilenetv2_latency_table.json [--write-problems DIR]

The file holds the published latency table of MobileNetV2 on BISMO (Wang et al., HAQ, CVPR 2019), in cycles by layer,
weight bits and activation bits, and the policy released for 0.60 of the latency at 8 bit. Every layer may keep its
released bits or raise them; the activations of the first layer stay at 8. Ends with exit code 1 unless at least 50
more bits are found within the limit, proven to be the most there are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from haq.edges.documents import read_json
from haq.problem.problem import Problem
from haq.solve.solve import solve_document

LIMIT = 0.60
EXPECTED_BITS = 50
MOST_BITS = 8
UNUSED = "unused_bits"


def problem_document(data: Mapping[str, Any], *, limit: float = LIMIT) -> dict[str, Any]:
    """The most bits in all (the fewest left unused of 8/8) within `limit` of the cycles at 8/8."""
    layers = []
    for index, (table, released) in enumerate(zip(data["table"], data["released_policy_0.6"], strict=True)):
        lowest_weight, lowest_activation = released[0], MOST_BITS if index == 0 else released[1]
        choices = [
            {
                "weight_bits": weight,
                "activation_bits": activation,
                "sensitivity": 0.0,
                "costs": {
                    "cycles": table[weight - 1][activation - 1],
                    UNUSED: 2 * MOST_BITS - weight - activation,
                },
            }
            for weight in range(lowest_weight, MOST_BITS + 1)
            for activation in range(lowest_activation, MOST_BITS + 1)
        ]
        layers.append({"name": f"layer{index:02d}", "choices": choices})
    at_eight = sum(table[MOST_BITS - 1][MOST_BITS - 1] for table in data["table"])
    return {"schema_version": 1, "layers": layers, "budgets": {"cycles": limit * at_eight}, "objective": UNUSED}


def extra_bits(data: Mapping[str, Any], solution: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Weight and activation bits of each layer above the released ones."""
    chosen = [(entry["weight_bits"], entry["activation_bits"]) for entry in solution["policy"].values()]
    return [
        (weight - released[0], activation - released[1])
        for (weight, activation), released in zip(chosen, data["released_policy_0.6"], strict=True)
    ]


def show(data: Mapping[str, Any], solution: Mapping[str, Any], console: Console) -> None:
    at_eight = sum(table[MOST_BITS - 1][MOST_BITS - 1] for table in data["table"])
    cycles = [table[w - 1][a - 1] for table, (w, a) in zip(data["table"], data["released_policy_0.6"], strict=True)]
    extra = extra_bits(data, solution)
    layers = Table("layer", "released", "found", title="Layers with more bits (weight/activation)")
    for index, ((more_weight, more_activation), (weight, activation)) in enumerate(
        zip(extra, data["released_policy_0.6"], strict=True)
    ):
        if more_weight or more_activation:
            found = f"{weight + more_weight}/{activation + more_activation}"
            layers.add_row(f"{index}", f"{weight}/{activation}", found)
    console.print(layers)
    totals = Table("policy", "cycles", "of 8/8", "bits more")
    totals.add_row("released", f"{sum(cycles):,}", f"{sum(cycles) / at_eight:.4f}", "0")
    spent = solution["costs"]["cycles"]
    totals.add_row("found", f"{spent:,.0f}", f"{spent / at_eight:.4f}", f"{sum(map(sum, extra))}")
    console.print(totals)
    console.print(f"{solution['status']}, {layers.row_count} layers changed, {solution['seconds']:.3f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="haq_mobilenetv2_latency_table.json")
    parser.add_argument("--write-problems", type=Path, metavar="DIR", help="also write the problem file")
    args = parser.parse_args()
    data = read_json(args.data)
    document = problem_document(data)
    if args.write_problems is not None:
        args.write_problems.mkdir(parents=True, exist_ok=True)
        (args.write_problems / "haq_mobilenetv2_0.60.json").write_text(json.dumps(document, indent=1) + "\n")
    solution = solve_document(Problem.from_doc(document))
    console = Console()
    show(data, solution, console)
    more = sum(map(sum, extra_bits(data, solution)))
    holds = solution["status"] == "optimal" and more >= EXPECTED_BITS
    if not holds:
        console.print(f"does not hold: {more} more bits ({solution['status']}), expected at least {EXPECTED_BITS}")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
