"""What repairs regain: accuracy on the search split, policy by policy.

    python benchmarks/repairs.py experiments/mobilenet_v2_small_cortex_m7_ilp.toml --samples 1000
    python benchmarks/repairs.py EXPERIMENT --granularity channel --precisions w4a8 w2a8 --repairs none gptq --json

One row per uniform policy, one column per repair (joined by + where there are several); seconds beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from haq.experiment.experiment import Experiment
from haq.values.formats import Precision
from haq.values.policy import Policy

PRECISIONS = ("w8a8", "w4a8", "w3a8", "w2a8", "w4a4")
REPAIRS = ("none", "bn", "equalize", "equalize+bias_correction", "gptq", "adaround")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--granularity", choices=("tensor", "channel"), default="tensor")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--repairs", nargs="+", default=REPAIRS)
    parser.add_argument("--samples", type=int, default=1000, help="of the search split")
    parser.add_argument("--iterations", type=int, default=1000, help="of adaround, for each layer")
    parser.add_argument("--calibration", type=int, default=256, help="samples")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, list[float]]] = {}
    floating = 0.0
    for name in arguments.repairs:
        repairs = [] if name in ("none", "bn") else name.split("+")
        overrides = [
            f"evaluator.samples={arguments.samples}",
            f"evaluator.kind={'bn' if name == 'bn' else 'ptq'}",
            f"quantization.weight_granularity={arguments.granularity}",
            f"quantization.calibration_samples={arguments.calibration}",
            f"quantization.repair_iterations={arguments.iterations}",
            f"quantization.repairs={json.dumps(repairs)}",
            "cache.enabled=false",
        ]
        experiment = Experiment.load(arguments.experiment, overrides=overrides)
        evaluator = experiment.evaluator("search")
        floating = evaluator.float_score()
        for text in arguments.precisions:
            start = time.process_time()
            score = evaluator(Policy.uniform(experiment.network.layer_names, Precision.parse(text))).score
            rows.setdefault(text, {})[name] = [score, time.process_time() - start]
    if arguments.json:
        print(json.dumps({"float": floating, "rows": rows}, indent=2))
        return
    print(f"float {floating:.2f}; scores, and processor seconds, {arguments.granularity} scales")
    print(f"{'':8s}" + "".join(f"{name:>26s}" for name in arguments.repairs))
    for text, row in rows.items():
        print(f"{text:8s}" + "".join(f"{score:18.2f} ({seconds:4.0f} s)" for score, seconds in row.values()))


if __name__ == "__main__":
    main()
