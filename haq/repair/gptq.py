"""GPTQ: weights are rounded column by column, and what is left takes up each column's error."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from haq.quant import QuantizedModel
from haq.repair.grid import Grid, LayerData

_DAMPING = 0.01
_BLOCK = 128


def gptq(model: QuantizedModel, layer: str, data: LayerData, grid: Grid) -> Tensor | None:
    """The weight of `layer` on its grid; `None` for kinds of layers that are no product with a matrix of inputs.

    Frantar et al., "GPTQ: Accurate post-training quantization for generative pre-trained transformers" (ICLR 2023), in
    Cholesky form: columns by decreasing curvature (act-order), damping 1 % of its mean, blocks of 128 columns.
    Convolutions are matrices over (channels, kernel), a group at a time; a scale per group of inputs is the one
    calibrated before.

    Args:
        model: in float.
        layer: its name.
        data: what it reads.
        grid: of its weight.
    """
    module = model.layers[layer]
    if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        return None
    groups = int(getattr(module, "groups", 1))
    weight = model.float_weight(layer).double()
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    scale, zero = (part.double().reshape(rows.shape) for part in (grid.scale, grid.zero))
    found = []
    for group in range(groups):
        curvature = sum(_gram(_columns(module, x, groups, group)) for x in data.quantized)
        assert isinstance(curvature, Tensor)
        part = Grid(scale[group], zero[group], grid.low, grid.high)
        found.append(_rounded(rows[group], curvature, part))
    return torch.stack(found).reshape(weight.shape).to(grid.scale.dtype)


def _gram(x: Tensor) -> Tensor:
    parts = torch.split(x, 1 << 14)  # products in float32, sums in float64
    return torch.stack([(part.T @ part).double() for part in parts]).sum(0)


def _columns(module: nn.Module, x: Tensor, groups: int, group: int) -> Tensor:
    """Rows that the weight's matrix multiplies, `[positions, columns]`, of one group of channels."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    if any(module._reversed_padding_repeated_twice):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
    if isinstance(module, nn.Conv1d):
        x, kernel, dilation, stride = x[:, :, None], (1, *kernel), (1, *dilation), (1, *stride)
    width = x.shape[1] // groups
    part = x[:, group * width : (group + 1) * width]
    unfolded = functional.unfold(part, kernel, dilation=dilation, stride=stride)
    return unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1])


def _rounded(weight: Tensor, curvature: Tensor, grid: Grid) -> Tensor:
    """Rows of a matrix on their grid, least in the error `(W - Q) H (W - Q)^T` as far as the greedy order goes."""
    count = len(curvature)
    diagonal = curvature.diagonal().clone()
    curvature = curvature + torch.diag((diagonal == 0).double())  # an input that is always 0: any weight will do
    curvature = curvature + _DAMPING * curvature.diagonal().mean() * torch.eye(count, dtype=torch.double)
    order = diagonal.argsort(descending=True, stable=True)
    weight, scale, zero = weight[:, order].clone(), grid.scale[:, order], grid.zero[:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(curvature[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    result = torch.empty_like(weight)
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = torch.empty_like(weight[:, start:end])
        for j in range(start, end):
            column = Grid(scale[:, j], zero[:, j], grid.low, grid.high).nearest(weight[:, j])
            result[:, j] = column
            errors[:, j - start] = (weight[:, j] - column) / upper[j, j]
            weight[:, j:end] -= errors[:, j - start, None] * upper[None, j, j:end]
        weight[:, end:] -= errors @ upper[start:end, end:]
    return result[:, order.argsort()]
