"""Uniform policies of a zoo network measured after training, with batch norm re-estimated, and fine-tuned.

    python scripts/qat_table.py --steps 1720 --seeds 0 1 2 3 4      # the full table: 4 epochs, five seeds
    python scripts/qat_table.py --steps 40 --seeds 0                # minutes on two cores

Scores are of the test split; nothing is chosen by them. First and last layer are at 8 bit but in the w8a8 row and in
`--all-layers`. Prints a Markdown table as rows come in.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from haq.config import QATConfig
from haq.evaluate import LOSSES, FineTuner, PTQEvaluator, QATEvaluator, SplitEvaluator
from haq.quant import QuantizedModel
from haq.types import Policy, Precision
from haq.zoo import DATASETS, load_model

PRECISIONS = ("w8a8", "w4a4", "w3a3", "w2a2", "wternarya8", "wbinarya8")


def policy_of(model: QuantizedModel, text: str, *, all_layers: bool) -> Policy:
    policy = dict(Policy.uniform(model.layers, Precision.parse(text)))
    if not all_layers:
        names = list(policy)
        policy |= dict.fromkeys((names[0], names[-1]), Precision.parse("w8a8"))
    return Policy(policy)


def cell(evaluators: list[SplitEvaluator], policy: Policy) -> str:
    start = time.perf_counter()
    measured = [evaluator(policy) for evaluator in evaluators]
    seconds = (time.perf_counter() - start) / len(evaluators)
    if failed := [one.error for one in measured if not one.ok]:
        return failed[0]
    scores = [one.score for one in measured]
    spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.2f}{spread} ({seconds:.0f} s)"


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
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    data, floating = DATASETS[args.data](), load_model(args.model)
    model = QuantizedModel(floating, calibration=list(data.train.head(512).batches(64)))
    settings = QATConfig(
        steps=args.steps, learning_rate=args.learning_rate, distillation="kl", samples=min(55_000, 128 * args.steps)
    )
    tuners = [
        FineTuner(floating, model, data.train, settings=settings, loss=LOSSES["cross_entropy"], seed=seed)
        for seed in args.seeds
    ]
    plain = PTQEvaluator(model, data.test)
    columns: list[list[SplitEvaluator]] = [
        [plain],
        [PTQEvaluator(model, data.test, kind="bn")],
        [QATEvaluator(tuner, model, data.test) for tuner in tuners],
    ]
    print(f"float: {plain.float_score():.2f}\n\n| policy | ptq | bn | qat |\n|---|---|---|---|", flush=True)
    for text in args.precisions:
        policy = policy_of(model, text, all_layers=args.all_layers)
        print(f"| {text} | {' | '.join(cell(column, policy) for column in columns)} |", flush=True)


if __name__ == "__main__":
    main()
