"""A training step under a policy against the float step: forward, loss, backward and optimizer, ResNet-20, batch 128.

    python benchmarks/qat_step.py [--threads 2] [--repeats 9] [--compile] [--policy w4a4] [--json]

All rows run in one process, in turn, in channels-last memory, on random images; each row's ratio is the median, over
the rounds, of its time to the float step's of the same round, and the ratio of the two least times. Processor time
stands beside wall time: on a machine that others use it is the fairer one. `composed` is LSQ of plain torch operators,
as it is commonly written; compiled rows are held against the compiled float step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haq.quant import QuantizedModel
from haq.quant.training import TrainableModel, functions
from haq.types import Policy, Precision
from haq.zoo import MODELS

Step = Callable[[], None]


def step_of(forward: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], batch: tuple[Tensor, Tensor]) -> Step:
    optimizer = torch.optim.SGD(parameters, 1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(batch[0]), batch[1]).backward()
        optimizer.step()

    return step


def composed(step: Step) -> Step:
    """`step` with the plain operators in place of the fast function."""

    def run() -> None:
        fast, functions._is_dense = functions._is_dense, lambda x: False
        try:
            step()
        finally:
            functions._is_dense = fast

    return run


def steps(args: argparse.Namespace) -> dict[str, Step]:
    """Name of a row -> its step; the first of each mode is the float step."""
    torch.manual_seed(0)
    model = MODELS["resnet20"]()
    images = torch.randn(args.batch_size, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    batch = images, torch.randint(10, (args.batch_size,))
    quantized = QuantizedModel(model.eval(), calibration=[(images, None)])
    policy = Policy.uniform(quantized.layers, Precision.parse(args.policy))

    def trained(mode: str, scheme: str) -> Step:
        trainable = TrainableModel(model, quantized, scheme=scheme)
        trainable.apply(policy)
        trainable.module.train()
        parameters = [parameter for group in trainable.parameter_groups() for parameter in group]
        forward = torch.compile(trainable.module) if mode == "compiled" else trainable.module
        return step_of(forward, parameters, batch)

    def floating(mode: str) -> Step:
        plain = MODELS["resnet20"]().to(memory_format=torch.channels_last).train()
        return step_of(torch.compile(plain) if mode == "compiled" else plain, list(plain.parameters()), batch)

    rows = {
        "eager float": floating("eager"),
        "eager lsq": trained("eager", "lsq"),
        "eager ste": trained("eager", "ste"),
    }
    rows["eager composed lsq"] = composed(trained("eager", "lsq"))
    if args.compile:
        rows |= {"compiled float": floating("compiled"), "compiled lsq": trained("compiled", "lsq")}
    return rows


def timed(step: Step) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    rows = steps(args)
    for step in rows.values():
        step()
    rounds = [{name: timed(step) for name, step in rows.items()} for _ in range(args.repeats)]
    result = {}
    for name in rows:
        base = f"{name.split()[0]} float"
        entry: dict[str, float] = {}
        for index, clock in enumerate(("wall", "processor")):
            ours, theirs = ([one[row][index] for one in rounds] for row in (name, base))
            entry[f"{clock}_ms"] = 1e3 * min(ours)
            entry[f"{clock}_ratio_of_least"] = min(ours) / min(theirs)
            entry[f"{clock}_median_ratio"] = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        result[name] = entry
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--policy", default="w4a4")
    parser.add_argument("--compile", action="store_true", help="compiled steps, too; needs a C++ compiler")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = measure(args)
    if args.json:
        print(json.dumps(result))
        return
    for name, entry in result.items():
        print(f"{name:20s}", *(f"{key} {value:8.2f}" for key, value in entry.items()))


if __name__ == "__main__":
    main()
