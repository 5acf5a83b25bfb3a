"""AdaRound: each weight is rounded up or down so that the layer's output stays, not the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.quant import QuantizedModel
from haq.repair.grid import Grid, LayerData, outputs
from haq.values.errors import InputError

_LOW, _HIGH = -0.1, 1.1
_BATCH, _RATE, _WEIGHT = 32, 1e-2, 0.01
_BETA = (20.0, 2.0)
_WARM_UP = 0.2
LEAST_SAMPLES = 32


def adaround(model: QuantizedModel, layer: str, data: LayerData, grid: Grid, *, iterations: int, seed: int) -> Tensor:
    """The weight of `layer` on its grid.

    Nagel et al., "Up or down? Adaptive rounding for post-training quantization" (ICML 2020), equations 21 to 25, with
    the paper's settings: batches of 32 samples, regularization 0.01 after 20 % of the steps, beta from 20 to 2; Adam
    with 1e-2. The layer reads what it reads in the float model, quantized: its rounding then holds under every policy
    that gives it these formats. The following activation is left out of the loss.

    Args:
        model: in float.
        layer: its name.
        data: what it reads.
        grid: of its weight.
        iterations: steps; the paper's are 10,000.
        seed: of the order of the samples.

    Raises:
        InputError: fewer samples than a batch.
    """
    module = model.layers[layer]
    weight, bias = model.float_weight(layer).float(), model.float_bias(layer)
    x, read = torch.cat(data.inputs), torch.cat(data.quantized)
    if len(x) < LEAST_SAMPLES:
        raise InputError(
            f"quantization.calibration_samples: adaround needs {LEAST_SAMPLES} samples or more, and layer {layer} "
            f"reads {len(x)}; raise it"
        )
    with torch.no_grad():
        wanted = torch.cat([outputs(module, weight, bias, part) for part in torch.split(x, 256)])
        floor = (weight / grid.scale).floor()
        rest = (weight / grid.scale - floor).clamp(1e-4, 1 - 1e-4)
        start = -torch.log((_HIGH - _LOW) / (rest - _LOW) - 1)
    codes = floor + grid.zero
    variable = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=_RATE)
    generator = torch.Generator().manual_seed(seed)
    for step in range(iterations):
        chosen = torch.randint(len(x), (_BATCH,), generator=generator)
        up = _rectified(variable)
        found = outputs(module, grid.at(codes + up), bias, read[chosen])
        loss = (found - wanted[chosen]).square().sum() / _rows(found, module)
        done = (step / iterations - _WARM_UP) / (1 - _WARM_UP)
        if done >= 0:
            beta = _BETA[1] + (_BETA[0] - _BETA[1]) * (1 - done)
            loss = loss + _WEIGHT * (1 - (2 * up - 1).abs().pow(beta)).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return grid.at(codes + (_rectified(variable.detach()) >= 0.5))


def _rectified(variable: Tensor) -> Tensor:
    """The rectified sigmoid, equation 23: 0 at the floor, 1 above it."""
    return (variable.sigmoid() * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def _rows(found: Tensor, module: torch.nn.Module) -> int:
    """Positions over which a layer's squared error is averaged: all but its channels."""
    channels = getattr(module, "out_channels", None) or getattr(module, "out_features", None) or found.shape[-1]
    return max(1, found.numel() // int(channels))
