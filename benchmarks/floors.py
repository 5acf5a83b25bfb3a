"""What each part costs against the least that it could cost, taken in the same run.

    python benchmarks/floors.py [--only scoring evaluation ...] [--repeats 5] [--json]

Each row runs the part and its floor in turn and takes the median of their processor times; the ratio is cost over
floor, so smaller is better throughout. Where there is no floor but a bound in seconds, the ratio is seconds over that
bound and the goal 1. `--json` prints `{measure: {"ratio", "goal", "cost", "floor", "floor_is"}}`, times in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from haq.execute.cache import MeasurementCache
from haq.problem.problem import Problem, load_problem
from haq.quant import QuantizedModel
from haq.search.journal import Journal
from haq.sensitivity import sensitivity_table
from haq.solve.solve import solve
from haq.testing import chain_document
from haq.trace import trace
from haq.training import TrainableModel
from haq.values.formats import Format, Precision
from haq.values.policy import Policy
from haq.values.trial import Measurement, Trial
from haq.zoo import MODELS, Split

FORMATS = [Format.integer(bits) for bits in (2, 3, 4, 6, 8)]
IMAGES, BATCH = 512, 128
NETWORKS = ("resnet20", "mobilenet_v2_small")


@dataclass(frozen=True)
class Row:
    """One measure: seconds of the part and of its floor."""

    ratio: float
    goal: float
    cost: float
    floor: float
    floor_is: str


def processor(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def wall(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def row(part: Callable[[], object], floor: Callable[[], object], goal: float, floor_is: str, repeats: int) -> Row:
    """Both in turn, after one of each that does not count."""
    part(), floor()
    pairs = [(processor(part), processor(floor)) for _ in range(repeats)]
    cost, least = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Row(statistics.median(a / b for a, b in pairs), goal, cost, least, floor_is)


def bounded(part: Callable[[], object], bound: float, repeats: int, floor_is: str) -> Row:
    cost = statistics.median(processor(part) for _ in range(repeats))
    return Row(cost / bound, 1.0, cost, bound, floor_is)


def network(name: str) -> tuple[nn.Module, Split]:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    return model, Split(torch.randn(IMAGES, 1, 28, 28), torch.randint(10, (IMAGES,)))


def forward(model: nn.Module, split: Split) -> None:
    with torch.no_grad():
        for inputs, _ in split.batches(BATCH):
            model(inputs)


def forward_backward(model: nn.Module, split: Split) -> None:
    for inputs, targets in split.batches(BATCH):
        nn.functional.cross_entropy(model(inputs), targets).backward()


def scoring(repeats: int) -> Iterator[tuple[str, Row]]:
    for name in NETWORKS:
        model, split = network(name)
        quantized = QuantizedModel(model, calibration=list(split.head(BATCH).batches(BATCH)))
        for layer in quantized.layers:  # ranges and weights are measured below
            for fmt in FORMATS:
                quantized.activation_quantizer(layer, fmt), quantized.quantized_weight(layer, fmt)
        formats = dict.fromkeys(quantized.layers, (FORMATS, FORMATS))

        def score(quantized: QuantizedModel = quantized, formats: Any = formats, split: Split = split) -> None:
            sensitivity_table(
                quantized, formats, split, metric="fisher", loss=nn.functional.cross_entropy, batch_size=BATCH
            )

        floor = "one float forward and backward over the same images"
        yield (
            f"scoring, fisher, {name}",
            row(score, lambda m=model, s=split: forward_backward(m, s), 1.3, floor, repeats),
        )


def calibration(repeats: int) -> Iterator[tuple[str, Row]]:
    for name in NETWORKS:
        model, split = network(name)
        batches = list(split.batches(BATCH))

        def calibrate(model: nn.Module = model, batches: list[Any] = batches) -> None:
            quantized = QuantizedModel(model, calibration=batches)
            for layer in quantized.layers:
                for fmt in FORMATS:
                    quantized.activation_quantizer(layer, fmt)

        floor = "one float forward over the same images"
        yield f"calibration, {name}", row(calibrate, lambda m=model, s=split: forward(m, s), 1.5, floor, repeats)


def evaluation(repeats: int) -> Iterator[tuple[str, Row]]:
    for name, goal in zip(NETWORKS, (1 / 0.95, 1 / 0.9), strict=True):
        model, split = network(name)
        model = model.to(memory_format=torch.channels_last)
        split = Split(split.inputs.to(memory_format=torch.channels_last), split.targets)
        quantized = QuantizedModel(model, calibration=list(split.head(BATCH).batches(BATCH)))
        quantized.apply(Policy.uniform(quantized.layers, Precision.parse("w4a4")))
        floor = "float inference, same layout and threads"
        yield (
            f"evaluation, w4a4, {name}",
            row(
                lambda q=quantized, s=split: forward(q, s), lambda m=model, s=split: forward(m, s), goal, floor, repeats
            ),
        )


def training(repeats: int) -> Iterator[tuple[str, Row]]:
    model, split = network("resnet20")
    quantized = QuantizedModel(model, calibration=list(split.head(BATCH).batches(BATCH)))
    trainable = TrainableModel(model, quantized)
    trainable.apply(Policy.uniform(quantized.layers, Precision.parse("w4a4")))
    batch = split.head(BATCH)

    def step(module: Callable[[Tensor], Tensor]) -> None:
        nn.functional.cross_entropy(module(batch.inputs), batch.targets).backward()

    yield (
        "fine-tuning step, eager, resnet20",
        row(lambda: step(trainable), lambda: step(model), 1.2, "float step", repeats),
    )


def solver(repeats: int) -> Iterator[tuple[str, Row]]:
    hard = Problem.from_doc(chain_document(300))
    yield "solver, 300 x 25, proven optimum", bounded(lambda: solve(hard), 1.0, 1, "1 s")
    small = Problem.from_doc(chain_document(100))
    yield "solver, 100 x 25, gap 0.1 %", bounded(lambda: solve(small, gap=1e-3), 0.2, repeats, "0.2 s")
    with tempfile.TemporaryDirectory() as folder:
        for layers in (1000, 5000):
            path = Path(folder) / f"{layers}.json"
            path.write_text(json.dumps(chain_document(layers)))
            problem = load_problem(path)
            yield (
                f"solver, {layers} x 25, gap 0.1 %",
                row(lambda p=problem: solve(p, gap=1e-3), lambda f=path: load_problem(f), 2.0, "reading the file", 2),
            )


def storage(repeats: int) -> Iterator[tuple[str, Row]]:
    policies = [
        Policy({f"layer{i}": Precision.parse(f"w{2 + (n >> i) % 2}a8") for i in range(14)}) for n in range(10_000)
    ]
    setup: dict[str, Any] = {"haq": "floors"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trials.jsonl"
        header = {"schema_version": 1, "setup": setup}
        trials = (Trial(n, "ilp", p, {"latency_ms": 1.0}, Measurement(float(n), "ptq")) for n, p in enumerate(policies))
        path.write_text("\n".join(json.dumps(d) for d in (header, *(t.to_doc() for t in trials))) + "\n")
        yield (
            "journal of 10,000 trials, resume",
            bounded(lambda: Journal.resume(path, setup).close(), 2.0, repeats, "2 s"),
        )
        cache = MeasurementCache(Path(folder), setup)
        for policy in policies:
            cache.put(policy, Measurement(1.0, "ptq"))
        looked = policies[::100]
        each = statistics.median(wall(lambda: [cache.get(p) for p in looked]) for _ in range(repeats)) / len(looked)
        yield "cache of 10,000 entries, look-up", Row(each / 1e-3, 1.0, each, 1e-3, "1 ms")


def tracing(repeats: int) -> Iterator[tuple[str, Row]]:
    layers = [module for _ in range(300) for module in (nn.Linear(8, 8), nn.ReLU())]
    model, x = nn.Sequential(*layers).eval(), torch.zeros(2, 8)
    yield (
        "trace of 300 layers",
        row(lambda: trace(model, x), lambda: torch.export.export(model, (x,), strict=False), 1.2, "torch.export", 1),
    )


def start(repeats: int) -> Iterator[tuple[str, Row]]:
    def run(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run(
            [sys.executable, *arguments], check=True, capture_output=True, env=dict(os.environ)
        )

    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.json"
        tiny.write_text(json.dumps(chain_document(3)))
        for label, arguments, bound in (
            ("haq --help", ("-m", "haq", "--help"), 0.3),
            ("haq solve of a tiny file", ("-m", "haq", "solve", str(tiny)), 1.0),
        ):
            took = statistics.median(wall(run(*arguments)) for _ in range(repeats))
            least = statistics.median(wall(run("-c", "pass")) for _ in range(repeats))
            yield (
                f"start, {label}",
                Row(took / bound, 1.0, took, bound, f"{bound} s; python -c pass takes {least:.2f} s"),
            )


PARTS = {
    "scoring": scoring,
    "calibration": calibration,
    "evaluation": evaluation,
    "training": training,
    "solver": solver,
    "storage": storage,
    "tracing": tracing,
    "start": start,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Row] = {}
    for name in arguments.only:
        for measure, result in PARTS[name](arguments.repeats):
            found[measure] = result
            if not arguments.json:
                met = "met" if result.ratio <= result.goal else "not met"
                print(
                    f"{measure:40s} {result.ratio:8.3f}  goal {result.goal:6.3f}  {met:8s} floor: {result.floor_is}",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps({measure: asdict(result) for measure, result in found.items()}, indent=2))


if __name__ == "__main__":
    main()
