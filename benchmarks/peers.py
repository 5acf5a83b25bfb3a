"""Model Optimizer's mixed-precision search beside ours, on the same network and images, scored by one evaluator.

    pip install nvidia-modelopt        # into an environment of its own: it brings many packages
    python benchmarks/peers.py [--budgets 3.0 2.5 2.25] [--weight-calibration mse]

ResNet-20 with weights of 2, 4 or 8 bit at a given average and float activations. Both searches get the same 512
training images to calibrate and score on; both policies are then quantized by `haq` and scored on the test split,
without and with batch norm re-estimated. Processor seconds are those of each search once model and images are in
memory, imports left out; our one table of sensitivities serves all budgets.
Without Model Optimizer only our rows are printed, and a line that says so.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from compare_weight_search import Comparison, Row

from haq.values.formats import Format, Precision
from haq.values.policy import Policy

CHOICES = (2, 4, 8)
IMAGES = 512


def peer_format(bits: int) -> dict[str, Any]:
    """Weights in so many bits per output channel, activations in float."""
    weights = {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}, "enable": True}
    return {"quant_cfg": [{"quantizer_name": "*", "enable": False}, weights], "algorithm": "max"}


def peer_bits(model: nn.Module, batches: list[Any], budget: float) -> tuple[dict[str, int], float]:
    """Bits per layer by Model Optimizer's gradient search at `budget` bits on average, and its processor seconds."""
    import modelopt.torch.quantization as peer

    start = time.process_time()
    searched, _ = peer.auto_quantize(
        copy.deepcopy(model),
        constraints={"effective_bits": budget},
        quantization_formats=[peer_format(bits) for bits in CHOICES],
        data_loader=batches,
        forward_step=lambda module, batch: module(batch[0]),
        loss_func=lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1]),
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
    )
    seconds = time.process_time() - start
    found = {
        name: module.weight_quantizer.num_bits if module.weight_quantizer.is_enabled else 32
        for name, module in searched.named_modules()
        if hasattr(module, "weight_quantizer")
    }
    return found, seconds


def peer_rows(comparison: Comparison, budgets: list[float]) -> Iterator[Row]:
    batches = list(comparison.data.train.head(IMAGES).batches(64))
    sizes = {name: comparison.model.get_submodule(name).weight.numel() for name in comparison.layers}
    for budget in budgets:
        bits, seconds = peer_bits(comparison.model, batches, budget)
        formats = {name: Format.parse("fp32" if bits[name] == 32 else f"int{bits[name]}") for name in sizes}
        policy = Policy({name: Precision(formats[name], Format.parse("fp32")) for name in sizes})
        average = sum(bits[name] * size for name, size in sizes.items()) / sum(sizes.values())
        yield comparison.row(budget, "Model Optimizer, gradient", policy, average, seconds)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[3.0, 2.5, 2.25])
    parser.add_argument("--weight-calibration", help="default: the library's")
    chosen = {"model": "resnet20", "data": "fashion_mnist", "metrics": ["fisher"], "activations": "fp32"}
    chosen |= {"weights": [f"int{bits}" for bits in CHOICES], "samples": IMAGES, "calibration": IMAGES, "random": 0}
    parser.set_defaults(**chosen)
    return parser.parse_args()


def main() -> None:
    args = options()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    comparison = Comparison(args)
    rows = list(comparison.rows())
    if importlib.util.find_spec("modelopt") is None:
        print("Model Optimizer is not installed: pip install nvidia-modelopt")
    else:
        rows += peer_rows(comparison, args.budgets)
    print(f"float {comparison.float_score:.2f} %")
    print(
        "{:>6}  {:26} {:>9} {:>12} {:>7} {:>13}".format(
            "budget", "search", "bits", "processor s", "plain", "re-estimated"
        )
    )
    for row in sorted(rows, key=lambda row: -row.budget):
        figures = f"{row.average_bits:9.3f} {row.seconds:12.1f} {row.plain:7.2f} {row.batch_norm:13.2f}"
        print(f"{row.budget:6g}  {row.search:26} {figures}")


if __name__ == "__main__":
    main()
