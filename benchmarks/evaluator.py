"""Speed of the post-training evaluator: policy switches, and images per second against the float model's own.

    python benchmarks/evaluator.py [--model resnet20] [--threads 1] [--batch-size 64] [--json]

Float and quantized passes alternate in one process, on random images and random weights, and the ratio is the median
over the pairs: the machine's load cancels. Both models use channels-last memory, the faster layout for both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from haq.quant import QuantizedModel, correct_bias, reestimate_batch_norm
from haq.quant.settings import QuantizationConfig
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import MODELS

SWITCHED = ("w8a8", "w4a4", "w2a8", "w4a8")


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def switch_ms(model: QuantizedModel, repeats: int) -> dict[str, float]:
    """Switching all layers at once, when the formats were used before and when they were not."""
    policies = [Policy.uniform(model.layers, Precision.parse(text)) for text in SWITCHED]
    first = statistics.mean(1e3 * seconds(lambda policy=policy: model.apply(policy)) for policy in policies)
    again = statistics.median(1e3 * seconds(lambda p=p: model.apply(p)) for _ in range(repeats) for p in policies)
    return {"switch_ms": again, "first_switch_ms": first}


def throughput(
    float_model: torch.nn.Module, model: QuantizedModel, images: torch.Tensor, repeats: int
) -> dict[str, float]:
    """Images per second of the float model, and each policy's share of it."""
    result = {}
    floats = []
    for text in ("w8a8", "w4a4", "w4afp32"):
        model.apply(Policy.uniform(model.layers, Precision.parse(text)))
        with torch.no_grad():
            float_model(images), model(images)
            pairs = [(seconds(lambda: float_model(images)), seconds(lambda: model(images))) for _ in range(repeats)]
        floats += [one for one, _ in pairs]
        result[f"{text}_ratio"] = statistics.median(one / other for one, other in pairs)
    return {"float_images_per_second": len(images) / statistics.median(floats), **result}


def measure(name: str, *, batch_size: int, repeats: int, batch_norm: str) -> dict[str, float]:
    torch.manual_seed(0)
    float_model = MODELS[name]().eval().to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    calibration = [(torch.randn(128, 1, 28, 28), None) for _ in range(4)]
    settings = QuantizationConfig.model_validate({"batch_norm": batch_norm})
    start = time.process_time()
    model = QuantizedModel(float_model, calibration=calibration, quantization=settings)
    result = {"wrap_cpu_seconds": time.process_time() - start, **switch_ms(model, repeats)}
    result |= throughput(float_model, model, images, repeats)
    for compensate in (reestimate_batch_norm, correct_bias):
        start = time.process_time()
        compensate(model)
        result[f"{compensate.__name__}_cpu_seconds"] = time.process_time() - start
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch-norm", choices=("keep", "fold"), default="keep")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {
        name: measure(name, batch_size=options.batch_size, repeats=options.repeats, batch_norm=options.batch_norm)
        for name in options.model or ("resnet20", "mobilenet_v2_small")
    }
    if options.json:
        print(json.dumps(results))
        return
    for name, figures in results.items():
        print(name, *(f"  {key:32s} {value:10.3f}" for key, value in figures.items()), sep="\n")


if __name__ == "__main__":
    main()
