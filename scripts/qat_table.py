"""Uniform policies of a zoo network measured after training, with batch norm re-estimated, and fine-tuned.

    python scripts/qat_table.py --steps 1720 --seeds 0 1 2 3 4      # the full table: 4 epochs, five seeds
    python scripts/qat_table.py --steps 40 --seeds 0                # minutes on two cores
    python scripts/qat_table.py --steps 1720 --show                 # what is measured of it by now

Scores are of the test split; nothing is chosen by them. First and last layer are at 8 bit but in the w8a8 row and in
`--all-layers`. Each measurement is a line of `--file` as soon as it is made, and is not made again; once all are
there, a Markdown table is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from haq.evaluate import LOSSES, PTQEvaluator, QATEvaluator, SplitEvaluator
from haq.quant import QuantizedModel
from haq.training import FineTuner
from haq.training.settings import QATConfig
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import DATASETS, load_model

PRECISIONS = ("w8a8", "w4a4", "w3a3", "w2a2", "wternarya8", "wbinarya8")
Cell = dict[str, Any]


def policy_of(model: QuantizedModel, text: str, *, all_layers: bool) -> Policy:
    policy = dict(Policy.uniform(model.layers, Precision.parse(text)))
    if not all_layers:
        names = list(policy)
        policy |= dict.fromkeys((names[0], names[-1]), Precision.parse("w8a8"))
    return Policy(policy)


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """What is to be measured, cheap ones first, then seed by seed."""
    same = {"model": args.model, "data": args.data, "threads": args.threads, "all_layers": args.all_layers}
    yield {**same, "kind": "float"}
    for kind in ("ptq", "bn"):
        yield from ({**same, "kind": kind, "precision": text} for text in args.precisions)
    trained = {**same, "kind": "qat", "steps": args.steps, "learning_rate": args.learning_rate}
    for seed in args.seeds:
        yield from ({**trained, "seed": seed, "precision": text} for text in args.precisions)


def measured(args: argparse.Namespace) -> list[tuple[Cell, Cell]]:
    """Each cell and what it came to: from the file, or measured now."""
    lines = args.file.read_text(encoding="utf-8").splitlines() if args.file.exists() else []
    known = {json.dumps(line["cell"]): line["found"] for line in map(json.loads, lines)}
    if args.show:
        return [(cell, known[json.dumps(cell)]) for cell in cells(args) if json.dumps(cell) in known]
    data, floating = DATASETS[args.data](), load_model(args.model)
    model = QuantizedModel(floating, calibration=list(data.train.head(512).batches(64)))
    settings = QATConfig(
        steps=args.steps, learning_rate=args.learning_rate, distillation="kl", samples=min(55_000, 128 * args.steps)
    )

    @cache
    def evaluator(kind: str, seed: int) -> SplitEvaluator:
        if kind != "qat":
            return PTQEvaluator(model, data.test, kind="bn" if kind == "bn" else "ptq")
        loss = LOSSES["cross_entropy"]
        tuner = FineTuner(floating, model, data.train, settings=settings, loss=loss, seed=seed)
        return QATEvaluator(tuner, model, data.test)

    def measure(cell: Cell) -> Cell:
        one = evaluator(cell["kind"], cell.get("seed", 0))
        if cell["kind"] == "float":
            found = one.float_measurement()
        else:
            found = one(policy_of(model, cell["precision"], all_layers=args.all_layers))
        return {"score": found.score if found.ok else None, "seconds": found.seconds, "error": found.error}

    result = []
    for cell in cells(args):
        key = json.dumps(cell)
        if key not in known:
            known[key] = measure(cell)
            with args.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"cell": cell, "found": known[key]}) + "\n")
        result.append((cell, known[key]))
    return result


def text_of(found: list[Cell]) -> str:
    """Mean and spread of a table's cell, over how many seeds, and the median seconds."""
    if not found:
        return "–"
    if failed := [one["error"] for one in found if one["score"] is None]:
        return str(failed[0])
    scores = [one["score"] for one in found]
    spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    seeds = f"{len(scores)} seeds, " if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.2f}{spread} ({seeds}{statistics.median(one['seconds'] for one in found):.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--steps", type=int, default=1720)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--all-layers", action="store_true", help="the first and the last layer like all others")
    parser.add_argument("--file", type=Path, default=Path("qat_table.jsonl"), help="where measurements are kept")
    parser.add_argument("--show", action="store_true", help="print what is measured by now")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    result = measured(args)
    print(f"float: {result[0][1]['score']:.2f}\n\n| policy | ptq | bn | qat |\n|---|---|---|---|")
    for text in args.precisions:
        row = [
            text_of([found for cell, found in result if (cell["kind"], cell.get("precision")) == (kind, text)])
            for kind in ("ptq", "bn", "qat")
        ]
        print(f"| {text} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
