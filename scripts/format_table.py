"""Every number format: bits per weight, all counted, and its error on Gaussian weights.

    python scripts/format_table.py [--markdown]

A weight of 1024 x 1024 independent standard normal values (seed 0), no outliers, quantized with the default
calibration; error is the mean square over the variance. What a layer's real weights lose, `haq sensitivity` says.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from haq.hardware.packing import parameter_bytes, weight_bytes
from haq.quant.settings import QuantizationConfig
from haq.quant.weights import WeightLayout, WeightQuantizer
from haq.trace import trace
from haq.values.formats import Format

NAMES = (
    *("binary", "ternary", "int2", "int3", "int4", "int5", "int6", "int8"),
    *("int4_g128", "int4_g64", "int4_g32", "vs4_s4", "vs4_s6"),
    *("fp8_e4m3", "fp8_e5m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4", "mxint8", "nvfp4"),
    *("mx9", "mx6", "mx4", "nf4", "pot3", "pot4", "pot5"),
    *("kmeans2", "kmeans3", "kmeans4", "kmeans5", "kmeans6", "kmeans7", "kmeans8", "pq4_d4", "pq6_d4", "pq4_d2"),
    *("bf16", "fp16"),
)


def row(name: str, weight: torch.Tensor) -> tuple[str, str, float, float]:
    """Name, family, bits per weight, error over variance."""
    fmt, settings, module = Format.parse(name), QuantizationConfig(), nn.Linear(weight.shape[1], weight.shape[0])
    layout = WeightLayout.of(module, weight, settings, fmt)
    quantizer = WeightQuantizer.calibrate(weight, fmt, layout, settings)
    error = float((quantizer(weight) - weight).square().mean() / weight.square().mean())
    (layer,) = trace(nn.Sequential(module), (torch.zeros(1, weight.shape[1]),)).layers
    held = weight_bytes(layer, fmt) + parameter_bytes(
        layer, fmt, granularity="channel", group_size=64, scheme="symmetric"
    )
    return name, fmt.family.name, 8 * held / weight.numel(), error


def main() -> None:
    """Print the table, as text or as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--markdown", action="store_true")
    markdown = parser.parse_args().markdown
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    if markdown:
        print("| Format | Family | Bits per weight | Error | SQNR, dB |\n|---|---|---|---|---|")
    for name in NAMES:
        _, family, bits, error = row(name, weight)
        decibel = -10 * torch.tensor(error).log10().item()
        cells = (
            f"`{name}`" if markdown else f"{name:12}",
            f"{family:20}",
            f"{bits:.3f}",
            f"{error:.3g}",
            f"{decibel:.1f}",
        )
        print("| " + " | ".join(cell.strip() for cell in cells) + " |" if markdown else "  ".join(cells))


if __name__ == "__main__":
    main()
