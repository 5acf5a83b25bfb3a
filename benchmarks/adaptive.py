"""What adaptive inference saves: static members against cascade, gate, oracle and chance, over seeds.

    python benchmarks/adaptive.py experiments/quickstart.toml --seeds 5
    python benchmarks/adaptive.py experiments/resnet20_riscv_xpulpnn_ilp.toml --seeds 5 --json

For each seed: a search, a family of its front, a controller fitted on the search split, one score on the test split.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from haq.experiment.experiment import Experiment
from haq.runs.adapt import adapt
from haq.runs.family import front_policies, make_family
from haq.runs.search import run_experiment


def one(experiment: Path, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows of one seed: way -> accuracy, and average cost as a share of the most precise member's."""
    overrides = [f"seed={seed}", f"search.max_trials={arguments.trials}"]
    pieces = Experiment.load(experiment, overrides=overrides)
    with tempfile.TemporaryDirectory() as place:
        folder, _ = run_experiment(pieces, out=Path(place) / "run")
        policies = front_policies(folder, pieces, count=arguments.members, by=arguments.by)
        make_family(pieces, policies, Path(place) / "family", onnx=arguments.measure > 0)
        found: dict[str, Any] = {}
        for controller in ("cascade", "gate"):
            document = adapt(
                pieces,
                Path(place) / "family",
                controller=controller,
                by=arguments.by,
                measure=arguments.measure,
                cost=arguments.cost,
            )
            rows = document["rows"]
            static = rows[: len(policies)]
            whole = static[-1]["costs"][arguments.by]
            best = max(static, key=lambda row: row["accuracy"])
            found["best static member"] = _entry(best, arguments.by, whole)
            found |= {
                row["name"]: _entry(row, arguments.by, whole) for row in rows if row["name"] in (controller, "oracle")
            }
            found[f"chance at the cost of the {controller}"] = _entry(rows[-1], arguments.by, whole)
            if arguments.measure:
                times = {row["name"]: row for row in document["measured"]}
                found[controller]["ms"] = times[controller]["mean_ms"] / times[static[-1]["name"]]["mean_ms"]
                found[controller]["p99"] = times[controller]["p99_ms"] / times[static[-1]["name"]]["p99_ms"]
    return found


def _entry(row: dict[str, Any], metric: str, whole: float) -> dict[str, float]:
    return {"accuracy": row["accuracy"], "cost": row["costs"][metric] / whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--trials", type=int, default=8, help="of each search")
    parser.add_argument("--by", default="bops")
    parser.add_argument("--cost", default=None, help="largest average cost, such as 50%%; default: an accuracy")
    parser.add_argument("--measure", type=int, default=0, help="samples that are timed in ONNX Runtime")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    runs = [one(arguments.experiment, seed, arguments) for seed in range(arguments.seeds)]
    table = {
        name: {
            key: {"mean": float(np.mean(values)), "spread": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
            for key in runs[0][name]
            if (values := [run[name][key] for run in runs])
        }
        for name in runs[0]
    }
    if arguments.json:
        print(json.dumps(table, indent=2))
        return
    print(f"{'':36s}  accuracy [%]      average {arguments.by}, of the most precise member's")
    for name, row in table.items():
        accuracy, cost = row["accuracy"], row["cost"]
        timed = f"  ms {row['ms']['mean']:.2f}, p99 {row['p99']['mean']:.2f}" if "ms" in row else ""
        scored = f"{accuracy['mean']:6.2f} ± {accuracy['spread']:.2f}"
        print(f"{name:36s}  {scored}   {cost['mean']:.3f} ± {cost['spread']:.3f}{timed}")


if __name__ == "__main__":
    main()
