"""How closely do exported models follow the quantized torch model, for random policies, on real data?

    python benchmarks/export_agreement.py experiments/resnet20_cortex_m7_ilp.toml --policies 5 --samples 2000

Each layer gets a random weight and a random activation format; the comparison is on the first samples of the test
split. The first policy is uniform 8 bit.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from tempfile import TemporaryDirectory

from haq import Experiment, Policy, Precision
from haq.deployed.check import compare
from haq.export import export, exporter
from haq.export.onnx.run import INTEGER_KERNELS, kernels

FORMATS = ["2", "3", "4", "5", "6", "7", "8", "9", "12", "16", "ternary", "binary", "fp16", "bf16", "fp32"]


def policies(layers: list[str], count: int, formats: list[str], seed: int) -> list[tuple[str, Policy]]:
    """Uniform 8 bit and `count` random ones."""
    rng = random.Random(seed)
    draw = [
        Policy({name: Precision.parse(f"w{rng.choice(formats)}a{rng.choice(formats)}") for name in layers})
        for _ in range(count)
    ]
    return [
        ("w8a8", Policy.uniform(layers, Precision.parse("w8a8"))),
        *((f"random {index}", policy) for index, policy in enumerate(draw)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("--policies", type=int, default=5)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    experiment = Experiment.load(arguments.experiment, overrides=arguments.overrides)
    quantized, model = experiment.quantized, experiment.model
    split = experiment.data.test.head(arguments.samples)
    print("policy      agreement %   torch %    onnx %   largest difference (of output)   integer layers")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for title, policy in policies(list(quantized.layers), arguments.policies, arguments.formats, arguments.seed):
            quantized.apply(policy)
            export(quantized, model, path, inputs=split.head(2).inputs, format="onnx")
            found = compare(quantized, exporter("onnx").load(path, model), split.batches(250), metric=experiment.metric)
            ran = kernels(path.read_bytes(), quantized.layers)
            integer = sum(kind in INTEGER_KERNELS for kind in ran.values())
            print(
                f"{title:10s} {found.agreement:12.2f} {found.score:9.2f} {found.exported_score:9.2f}"
                f" {found.largest_difference:12.4f} of {found.largest_output:8.2f} {integer:15d} of {len(policy)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
