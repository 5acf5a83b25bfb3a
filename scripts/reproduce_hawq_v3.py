"""Solve the 18 problems of HAWQ-V3 and compare with its published policies.

    python scripts/reproduce_hawq_v3.py hawq_v3_resnet.json [--write-problems DIR]

The file holds the published inputs of the integer programs (Yao et al., HAWQ-V3, ICML 2021): sensitivity, latency on an
NVIDIA T4, size and bit operations of each layer at 4 and at 8 bit, for ResNet-18 and ResNet-50, and nine budgets each.
Ends with exit code 1 unless 17 policies are the published ones, the remaining one is better than published (at most
0.07495), and all are proven optimal within 10 seconds of solver time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from haq.edges.documents import read_json
from haq.problem.problem import Problem
from haq.solve.solve import solve_document

BETTER_THAN_PUBLISHED = ("resnet50", "size_bytes", 0.25)
ITS_OPTIMUM = 0.07495
SOLVER_SECONDS = 10.0


@dataclass(frozen=True)
class Row:
    """One of the 18 problems and its solution."""

    name: tuple[str, str, float]
    document: Mapping[str, Any]
    solution: Mapping[str, Any]
    published: Mapping[str, int]
    published_sensitivity: float

    @property
    def same(self) -> bool:
        """Whether the policy is the published one, bit for bit."""
        policy = self.solution["policy"]
        return all(policy[layer]["weight_bits"] == bits for layer, bits in self.published.items())


def problem_documents(data: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, float], dict[str, Any], Any]]:
    """Name, problem document and published entry of each problem."""
    for network, entry in data["networks"].items():
        for published in entry["problems"]:
            document = {
                "schema_version": 1,
                "layers": entry["layers"],
                "ties": entry["ties"],
                "budgets": {published["metric"]: published["budget"]},
                "objective": "sensitivity",
            }
            yield (network, published["metric"], published["fraction"]), document, published


def solve_all(data: Mapping[str, Any]) -> list[Row]:
    """Every problem, solved."""
    rows = []
    for name, document, published in problem_documents(data):
        solution = solve_document(Problem.from_doc(document))
        bits, sensitivity = published["published_bits"], published["published_sensitivity"]
        rows.append(Row(name, document, solution, bits, sensitivity))
    return rows


def failures(rows: list[Row]) -> list[str]:
    """What does not hold of the claim, in words."""
    found = [f"{row.name}: {row.solution['status']}" for row in rows if row.solution["status"] != "optimal"]
    found += [f"{row.name}: another policy" for row in rows if not row.same and row.name != BETTER_THAN_PUBLISHED]
    best = {row.name: row.solution["objective"] for row in rows}.get(BETTER_THAN_PUBLISHED)
    if best is None or best > ITS_OPTIMUM:
        found.append(f"{BETTER_THAN_PUBLISHED}: sensitivity {best}, expected at most {ITS_OPTIMUM}")
    if (seconds := sum(row.solution["seconds"] for row in rows)) > SOLVER_SECONDS:
        found.append(f"{seconds:.1f} s of solver time, expected at most {SOLVER_SECONDS:.0f}")
    return found + ([f"{len(rows)} problems, expected 18"] if len(rows) != 18 else [])


def show(rows: list[Row], console: Console) -> None:
    table = Table("network", "budget", "at", "status", "omega", "published", "policy", "ms", title="HAWQ-V3")
    for row in rows:
        network, metric, fraction = row.name
        values = f"{row.solution['objective']:.6f}", f"{row.published_sensitivity:.6f}"
        policy = "published" if row.same else "better"
        milliseconds = f"{1000 * row.solution['seconds']:.1f}"
        table.add_row(network, metric, f"{fraction:.2f}", row.solution["status"], *values, policy, milliseconds)
    console.print(table)
    seconds = sum(row.solution["seconds"] for row in rows)
    console.print(f"{sum(row.same for row in rows)} of {len(rows)} policies as published; solver time {seconds:.3f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="hawq_v3_resnet.json")
    parser.add_argument("--write-problems", type=Path, metavar="DIR", help="also write the 18 problem files")
    args = parser.parse_args()
    rows = solve_all(read_json(args.data))
    if args.write_problems is not None:
        args.write_problems.mkdir(parents=True, exist_ok=True)
        for row in rows:
            network, metric, fraction = row.name
            path = args.write_problems / f"{network}_{metric}_{fraction:.2f}.json"
            path.write_text(json.dumps(row.document, indent=1) + "\n")
    console = Console()
    show(rows, console)
    problems = failures(rows)
    for text in problems:
        console.print(f"does not hold: {text}")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
