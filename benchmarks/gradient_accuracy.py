"""Accuracy after training with compressed gradients, over seeds: with and without error feedback, beside float32.

    python benchmarks/gradient_accuracy.py --task digits [--workers 2 4] [--seeds 5] [--out FILE.json]
    python benchmarks/gradient_accuracy.py --task resnet20 --policy w2a2 [--samples 4096] [--out FILE.json]

`digits`: the zoo's digits network from scratch in float; `resnet20`: the zoo's ResNet-20 fine-tuned under a uniform
policy on Fashion-MNIST. Workers are simulated in this process: each computes the gradient of its share of the batch
with its own batch norm statistics, and the compressors' own messages are exchanged. Every method trains from the same
start with the same batches for a seed. Scores are of the search split. Printed: mean and the standard error of the
difference to float32 over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haq.distributed import COMPRESSORS, Compressor, ErrorFeedback, Place
from haq.quant import QuantizedModel
from haq.training import TrainableModel
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import DATASETS, MODELS, load_model

METHODS: dict[str, tuple[str, bool, dict[str, Any]] | None] = {
    "none": None,
    "onebit": ("onebit", True, {}),
    "onebit, no feedback": ("onebit", False, {}),
    "topk 1 %": ("topk", True, {"ratio": 0.01}),
    "topk 1 %, no feedback": ("topk", False, {"ratio": 0.01}),
    "signsgd": ("signsgd", True, {}),
    "signsgd, no feedback": ("signsgd", False, {}),
    "randomk 1 %": ("randomk", True, {"ratio": 0.01}),
    "randomk 1 %, no feedback": ("randomk", False, {"ratio": 0.01}),
    "terngrad": ("terngrad", False, {}),
    "qsgd, 1 level": ("qsgd", False, {"levels": 1}),
}


@dataclass
class Workers:
    """Simulated workers, each with a compressor of its own."""

    method: str
    count: int
    seed: int
    sent: int = 0
    dense: int = 0
    step: int = 0
    compressors: list[Compressor] = field(default_factory=list)

    def __post_init__(self) -> None:
        chosen = METHODS[self.method]
        for _ in range(self.count if chosen else 0):
            made = COMPRESSORS[chosen[0]](**chosen[2])  # type: ignore[index]
            self.compressors.append(ErrorFeedback(made) if chosen[1] else made)  # type: ignore[index]

    def exchange(self, name: str, gradients: list[Tensor]) -> Tensor:
        """The mean gradient of a parameter as all workers get it."""
        self.dense += 4 * gradients[0].numel()
        if not self.compressors:
            self.sent += 4 * gradients[0].numel()
            return torch.stack(gradients).mean(0)
        shape, rows = tuple(gradients[0].shape), [g.reshape(-1) for g in gradients]
        places = [Place(name, shape, rank, self.count, self.step, self.seed) for rank in range(self.count)]
        members = list(zip(self.compressors, rows, places, strict=True))
        largest = max(c.largest(row, place) for c, row, place in members)
        messages = [c.encode(row, place, largest=largest) for c, row, place in members]
        self.sent += messages[0].numel() * messages[0].element_size()
        first = self.compressors[0]
        mean = first.decode(sum(messages) / self.count, places[0]) if first.summed else first.mean(messages, places[0])
        return mean.view(shape)


def batches(count: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while True:
        for rows in torch.split(torch.randperm(count, generator=generator)[: count // size * size], size):
            if done == steps:
                return
            done += 1
            yield rows


def train(
    forward: Callable[[Tensor], Tensor], named: dict[str, nn.Parameter], data: Any, workers: Workers, options: Any
) -> None:
    optimizer = torch.optim.SGD(named.values(), options.rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    for rows in batches(len(data), options.batch, options.steps, workers.seed):
        shares: list[dict[str, Tensor]] = []
        for part in rows.chunk(workers.count):
            optimizer.zero_grad()
            F.cross_entropy(forward(data.inputs[part]), data.targets[part]).backward()
            shares.append({name: p.grad.clone() for name, p in named.items() if p.grad is not None})
        for name in shares[0]:
            named[name].grad = workers.exchange(name, [share[name] for share in shares])
        workers.step += 1
        optimizer.step()
        options.after()
        schedule.step()


@dataclass
class Options:
    rate: float
    steps: int
    batch: int
    after: Callable[[], None] = lambda: None


@torch.no_grad()
def accuracy(forward: Callable[[Tensor], Tensor], split: Any) -> float:
    right = sum(int((forward(x).argmax(1) == y).sum()) for x, y in split.batches(250))
    return 100.0 * right / len(split)


def digits(workers: Workers, data: Any, arguments: argparse.Namespace) -> float:
    torch.manual_seed(workers.seed)
    model = MODELS["digits_cnn"]().train()
    train(model, dict(model.named_parameters()), data.train, workers, Options(0.05, arguments.steps or 150, 64))
    return accuracy(model.eval(), data.search)


def resnet20(workers: Workers, data: Any, arguments: argparse.Namespace) -> float:
    model = load_model("resnet20")
    quantized = QuantizedModel(model, calibration=data.train.head(256).batches(128))
    tuned = TrainableModel(model, quantized)
    tuned.apply(Policy.uniform(quantized.layers, Precision.parse(arguments.policy)))
    tuned.module.train()
    part = data.train.head(arguments.samples)
    named = dict(tuned.module.named_parameters())
    steps = arguments.steps or len(part) // 128
    train(lambda x: tuned(tuned.prepared(x)), named, part, workers, Options(0.01, steps, 128, tuned.bounded))
    tuned.module.eval()
    return accuracy(lambda x: tuned(tuned.prepared(x)), data.search.head(2000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("digits", "resnet20"), default="digits")
    parser.add_argument("--policy", default="w2a2", help="of resnet20: the same format for every layer")
    parser.add_argument("--samples", type=int, default=4096, help="of resnet20's one epoch")
    parser.add_argument("--steps", type=int, help="default: 150 of digits, one epoch of resnet20")
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, help="write a picture of accuracy against bytes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = DATASETS["digits" if arguments.task == "digits" else "fashion_mnist"]()
    run = digits if arguments.task == "digits" else resnet20
    rows: list[dict[str, Any]] = []
    for count in arguments.workers:
        scores: dict[str, list[float]] = {method: [] for method in arguments.methods}
        ratios: dict[str, float] = {}
        for seed in range(arguments.seeds):
            for method in arguments.methods:
                workers = Workers(method, count, seed)
                scores[method].append(run(workers, data, arguments))
                ratios[method] = workers.dense / workers.sent
        rows += [
            row_of(arguments, count, method, scores[method], scores.get("none"), ratios[method])
            for method in arguments.methods
        ]
        if arguments.out:
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.plot:
        plot(rows, arguments.plot)
    for row in rows:
        print(
            f"{row['task']} {row['workers']} workers  {row['method']:26s} {row['accuracy']:6.2f} %  "
            f"difference {row['difference']:+.2f} ± {row['standard_error']:.2f}  {row['bytes_ratio']:.1f} x"
        )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        without = "no feedback" in row["method"]
        error = statistics.stdev(row["scores"]) / len(row["scores"]) ** 0.5 if len(row["scores"]) > 1 else 0.0
        axes.errorbar(1 / row["bytes_ratio"], row["accuracy"], error, fmt="s" if without else "o", label=row["method"])
    axes.set_xscale("log")
    axes.set_xlabel("bytes sent, as a share of float32")
    axes.set_ylabel("accuracy (%), mean and standard error")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)


def row_of(
    arguments: argparse.Namespace, count: int, method: str, own: list[float], base: list[float] | None, ratio: float
) -> dict[str, Any]:
    gaps = [a - b for a, b in zip(own, base or own, strict=True)]
    error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
    task = arguments.task if arguments.task == "digits" else f"resnet20 {arguments.policy}"
    return {
        "task": task,
        "workers": count,
        "method": method,
        "scores": own,
        "accuracy": statistics.mean(own),
        "difference": statistics.mean(gaps),
        "standard_error": error,
        "bytes_ratio": ratio,
    }


if __name__ == "__main__":
    main()
