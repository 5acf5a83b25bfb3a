"""Mixed-precision weight search at given average weight bits: accuracy and processor seconds, beside today's tools.

    python scripts/compare_weight_search.py [--model resnet20] [--budgets 4 3 2.5 2.25] [--metrics fisher gradient sqnr]
        [--samples 128] [--activations int8] [--json]

For each sensitivity metric a table is measured on training images and the integer program solved for each budget;
greedy search has the first metric's table; uniform and random policies need none. Every policy is then scored on the
test split, twice over: as quantized, and with batch norm re-estimated on the calibration images. Processor seconds are
those of everything a search needs once the float model and the images are in memory: wrapping, calibration, quantizing
weights, scoring, solving. With `--activations fp32 --weight-calibration mse` policies are scored as by the neutral
evaluator of `peer_weight_search.toml`: per-channel symmetric weights with MSE clipping, float activations.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from haq.evaluate import LOSSES, PTQEvaluator
from haq.problem.problem import Problem
from haq.quant import QuantizedModel
from haq.quant.settings import QuantizationConfig
from haq.search import ILP, Greedy, RandomSearch, SearchStrategy, Uniform
from haq.sensitivity import METRICS, SensitivityTable, sensitivity_table
from haq.values.formats import Format, Precision
from haq.values.policy import Policy
from haq.zoo import DATASETS, MODELS, load_model

PEERS = Path(__file__).with_name("peer_weight_search.toml")
BITS = "average_weight_bits"


@dataclass(frozen=True)
class Row:
    """One policy: who found it, what that took, what it is worth.

    Attributes:
        budget: average weight bits allowed.
        search: strategy, and the metric of its sensitivity table.
        average_bits: used.
        seconds: processor seconds of the search.
        plain: test accuracy in per cent, as quantized.
        batch_norm: with batch norm re-estimated.
        bits: weight bits in layer order.
    """

    budget: float
    search: str
    average_bits: float
    seconds: float
    plain: float
    batch_norm: float
    bits: str


def problem(model: QuantizedModel, table: SensitivityTable) -> Problem:
    """Every layer and the precisions of `table`, with average weight bits as the only cost."""
    sizes = {layer: model.float_weight(layer).numel() for layer in model.layers}
    total = sum(sizes.values())

    def choice(layer: str, precision: Precision) -> dict[str, Any]:
        cost = precision.weight.bits * sizes[layer] / total
        return {**precision.to_doc(), "sensitivity": table.of(layer, precision), "costs": {BITS: cost}}

    def precisions(layer: str) -> list[Precision]:
        names = itertools.product(table.weights[layer], table.activations[layer])
        return [Precision(Format.parse(weight), Format.parse(activation)) for weight, activation in names]

    layers = [{"name": layer, "choices": [choice(layer, p) for p in precisions(layer)]} for layer in model.layers]
    budgets = {BITS: max(Format.parse(name).bits for row in table.weights.values() for name in row)}
    return Problem.from_doc({"schema_version": 1, "layers": layers, "budgets": budgets, "objective": "sensitivity"})


class Comparison:
    """Searches and scores on one model and data set."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = load_model(options.model).to(memory_format=torch.channels_last)
        self.data = DATASETS[options.data]()
        model = self._quantized("keep")
        self.layers = tuple(model.layers)
        self._evaluators = [PTQEvaluator(model, self.data.test, kind=kind) for kind in ("ptq", "bn")]
        self.float_score = self._evaluators[0].float_score()
        self._scores: dict[Policy, list[float]] = {}

    def _quantized(self, batch_norm: Literal["keep", "reestimate"]) -> QuantizedModel:
        """The model wrapped anew, ranges from the calibration images."""
        settings = QuantizationConfig(
            weight_granularity="channel",
            weight_scheme="symmetric",
            weight_calibration=self.options.weight_calibration,
            batch_norm=batch_norm,
        )
        images = self.data.train.head(self.options.calibration)
        return QuantizedModel(self.model, quantization=settings, calibration=list(images.batches(256)))

    def table(self, metric: str) -> tuple[QuantizedModel, SensitivityTable, float]:
        """A model wrapped anew, its sensitivity table, and the processor seconds of both."""
        options, start = self.options, time.process_time()
        model = self._quantized("reestimate")
        formats = (list(map(Format.parse, options.weights)), [Format.parse(options.activations)])
        table = sensitivity_table(
            model,
            dict.fromkeys(model.layers, formats),
            self.data.train.head(options.samples),
            metric=metric,
            loss=LOSSES["cross_entropy"],
            batch_size=64,
        )
        return model, table, time.process_time() - start

    def rows(self) -> Iterator[Row]:
        for index, metric in enumerate(self.options.metrics):
            model, table, seconds = self.table(metric)
            start = time.process_time()
            priced = problem(model, table)
            seconds += time.process_time() - start
            for budget in self.options.budgets:
                bounded = priced.with_budgets({BITS: budget})
                yield self._row(budget, f"ilp, {metric}", bounded, ILP(bounded), seconds)
                if index == 0:
                    yield self._row(budget, f"greedy, {metric}", bounded, Greedy(bounded), seconds)
                    yield self._row(budget, "uniform", bounded, Uniform(bounded), 0.0)
                    for seed in range(self.options.random):
                        yield self._row(budget, f"random, seed {seed}", bounded, RandomSearch(bounded, seed=seed), 0.0)

    def _row(self, budget: float, name: str, priced: Problem, strategy: SearchStrategy, seconds: float) -> Row:
        start = time.process_time()
        (policy,) = strategy.suggest(1)
        seconds += time.process_time() - start
        return self.row(budget, name, policy, priced.costs(policy)[BITS], seconds)

    def row(self, budget: float, name: str, policy: Policy, average_bits: float, seconds: float) -> Row:
        """What a policy is worth on the test split; each is measured once."""
        if policy not in self._scores:
            self._scores[policy] = [evaluator(policy).score for evaluator in self._evaluators]
        plain, batch_norm = self._scores[policy]
        bits = " ".join(precision.weight.short for precision in policy.values())
        return Row(budget, name, average_bits, seconds, plain, batch_norm, bits)


def shown(rows: Sequence[Row], float_score: float, peers: Mapping[str, Any] | None) -> list[Table]:
    """A table per budget, peers below our own rows; accuracies with their drop from the float model."""
    tables = []
    for budget in dict.fromkeys(row.budget for row in rows):
        table = Table(
            title=f"average weight bits {budget:g}; test accuracy (drop from float), float {float_score:.2f} %"
        )
        for column in ("search", "bits", "processor s", "plain", "batch norm re-estimated", "own pipeline"):
            table.add_column(column, justify="left" if column == "search" else "right")
        for row in sorted((row for row in rows if row.budget == budget), key=lambda row: -row.batch_norm):
            scores = [f"{score:.2f} ({float_score - score:.2f})" for score in (row.plain, row.batch_norm)]
            table.add_row(row.search, f"{row.average_bits:.3f}", f"{row.seconds:.2f}", *scores, "")
        if peers is not None:
            table.add_section()
            reference = peers["provenance"]["float_accuracy"]
            for peer in (entry for entry in peers["results"] if entry["budget"] == budget):
                scores = [
                    f"{peer[key]:.2f} ({reference - peer[key]:.2f})" if key in peer else ""
                    for key in ("plain", "batch_norm", "own")
                ]
                seconds = f"{peer['processor_seconds']:.1f}" if "processor_seconds" in peer else ""
                table.add_row(peer["tool"], f"{peer['average_bits']:.3f}", seconds, *scores)
        tables.append(table)
    return tables


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", choices=sorted(MODELS))
    parser.add_argument("--data", default="fashion_mnist", choices=sorted(DATASETS))
    parser.add_argument("--budgets", type=float, nargs="+", default=[4.0, 3.0, 2.5, 2.25])
    parser.add_argument("--metrics", nargs="+", default=["fisher", "gradient", "sqnr"], choices=sorted(METRICS))
    parser.add_argument("--weights", nargs="+", default=["int2", "int3", "int4", "int8"])
    parser.add_argument("--activations", default="int8")
    parser.add_argument("--weight-calibration", help="default: the library's")
    parser.add_argument("--samples", type=int, default=128, help="images that sensitivity is measured on")
    parser.add_argument("--calibration", type=int, default=512, help="images for ranges and batch norm")
    parser.add_argument("--random", type=int, default=5, help="random policies per budget")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    comparison = Comparison(options)
    rows = []
    for row in comparison.rows():
        print(f"{row.budget:g} bits: {row.search}: {row.plain:.2f} / {row.batch_norm:.2f} %", file=sys.stderr)
        rows.append(row)
    if options.json:
        print(json.dumps({"float": comparison.float_score, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    same_work = (options.model, options.data) == ("resnet20", "fashion_mnist")
    peers = tomllib.loads(PEERS.read_text()) if same_work else None
    console = Console(width=120)
    for table in shown(rows, comparison.float_score, peers):
        console.print(table)
    if peers is not None:
        provenance = peers["provenance"]
        console.print(f"Peers: {provenance['model']}, float {provenance['float_accuracy']} %. {provenance['machine']}.")


if __name__ == "__main__":
    main()
