"""A training step under a policy against the float step: forward, loss, backward and optimizer, ResNet-20, batch 128.

    python benchmarks/qat_step.py [--threads 2] [--repeats 9] [--compile] [--bf16] [--peers] [--policy w4a4] [--json]

All rows run in one process, in turn, in channels-last memory, on random images; each row's ratio is the median, over
the rounds, of its time to the float step's of the same round, and the ratio of the two least times. Processor time
stands beside wall time: on a machine that others use it is the fairer one. `composed` is LSQ of plain torch operators,
as it is commonly written; compiled rows are held against the compiled float step, and those in bfloat16 autocast
against the eager one. `kept_mb` is what the forward pass allocates and has not freed at its end: what it keeps for the
gradients, in MiB. `--peers` adds what other libraries need for the same step (`qat_peers.py`), as far as they are
installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import qat_peers
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from haq.quant import QuantizedModel
from haq.training import TrainableModel
from haq.training import gradients as functions
from haq.training import learned_quantizers as quantizers
from haq.training import recompute as kept
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import MODELS


@dataclass(frozen=True)
class Row:
    """A training step, in two halves."""

    forward: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.forward().backward()
        self.optimizer.step()

    def kept_mb(self) -> float:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            loss = self.forward()
        allocated = sum(event.self_cpu_memory_usage for event in profiled.key_averages())
        del loss
        return float(allocated) / 2**20


def row_of(forward: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], batch: tuple[Tensor, Tensor]) -> Row:
    return Row(
        lambda: F.cross_entropy(forward(batch[0]).float(), batch[1]), torch.optim.SGD(parameters, 1e-3, momentum=0.9)
    )


def composed(row: Row) -> Row:
    """`row` with plain operators in place of the functions that keep and move little."""

    def forward() -> Tensor:
        with (
            mock.patch.object(quantizers, "learned_step", functions.composed_step),
            mock.patch.object(kept, "_packer", return_value=lambda tensor: tensor),
        ):
            return row.forward()

    return Row(forward, row.optimizer)


def bf16(row: Row) -> Row:
    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return row.forward()

    return Row(forward, row.optimizer)


def rows_of(args: argparse.Namespace) -> dict[str, Row]:
    """Name of a row -> its step; the first of each mode is the float step."""
    torch.manual_seed(0)
    model = MODELS["resnet20"]()
    images = torch.randn(args.batch_size, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    batch = images, torch.randint(10, (args.batch_size,))
    quantized = QuantizedModel(model.eval(), calibration=[(images, None)])
    policy = Policy.uniform(quantized.layers, Precision.parse(args.policy))

    def trained(mode: str, scheme: str) -> Row:
        trainable = TrainableModel(model, quantized, scheme=scheme)
        trainable.apply(policy)
        trainable.module.train()
        parameters = [parameter for group in trainable.parameter_groups() for parameter in group]
        forward = torch.compile(trainable.module) if mode == "compiled" else trainable.module
        return row_of(forward, parameters, batch)

    def floating(mode: str) -> Row:
        plain = MODELS["resnet20"]().to(memory_format=torch.channels_last).train()
        return row_of(torch.compile(plain) if mode == "compiled" else plain, list(plain.parameters()), batch)

    rows = {
        "eager float": floating("eager"),
        "eager lsq": trained("eager", "lsq"),
        "eager ste": trained("eager", "ste"),
    }
    rows["eager composed lsq"] = composed(trained("eager", "lsq"))
    if args.compile:
        rows |= {"compiled float": floating("compiled"), "compiled lsq": trained("compiled", "lsq")}
    if args.bf16:
        rows |= {"eager bf16 float": bf16(floating("eager")), "eager bf16 lsq": bf16(trained("eager", "lsq"))}
    if args.peers:
        for name, module in qat_peers.rows(model, images, args.policy):
            rows[f"eager {name}"] = row_of(module, [p for p in module.parameters() if p.requires_grad], batch)
    return rows


def timed(step: Callable[[], None]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    rows = rows_of(args)
    for row in rows.values():
        row.step()
    rounds = [{name: timed(row.step) for name, row in rows.items()} for _ in range(args.repeats)]
    result = {}
    for name, row in rows.items():
        base = f"{name.split()[0]} float"
        entry = {"kept_mb": row.kept_mb()}
        for index, clock in enumerate(("wall", "processor")):
            ours, theirs = ([one[which][index] for one in rounds] for which in (name, base))
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
    parser.add_argument("--bf16", action="store_true", help="steps in bfloat16 autocast, too")
    parser.add_argument("--peers", action="store_true", help="other libraries' steps, too, where they are installed")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = measure(args)
    if args.json:
        print(json.dumps(result))
        return
    for name, entry in result.items():
        print(f"{name:28s}", *(f"{key} {value:8.2f}" for key, value in entry.items()))


if __name__ == "__main__":
    main()
