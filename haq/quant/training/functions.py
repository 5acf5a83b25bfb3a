"""Fake quantization with the gradient of the learned step size, written to move as little memory as eager torch can."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def learned_step(
    x: Tensor, step: Tensor, zero_point: Tensor, quant_min: Tensor, quant_max: Tensor, gradient_scale: Tensor
) -> Tensor:
    """step * (clamp(round(x / step) + zero_point, quant_min, quant_max) - zero_point), straight through.

    Esser et al., "Learned step size quantization" (ICLR 2020), equations 1 to 5: the gradient passes to `x` where it is
    not clipped; the step's is round(v) - v inside, with v = x / step, and the clipped level outside, times
    `gradient_scale`.

    All arguments but `x` are 0-d, or `[rows, 1]` for `x [rows, n]`. A compiler gets plain operators to fuse; eager CPU
    runs a function that saves only `x` and the result, both of which the layers around save anyway.
    """
    if not torch.compiler.is_compiling() and x.device.type == "cpu" and step.dim() == 0 and _is_dense(x):
        limits = (float(quant_min - zero_point), float(quant_max - zero_point))
        result: Tensor = _PerTensor.apply(x, step, *limits, float(gradient_scale))  # type: ignore[no-untyped-call]
        return result
    return composed_step(x, step, zero_point, quant_min, quant_max, gradient_scale)


def composed_step(
    x: Tensor, step: Tensor, zero_point: Tensor, quant_min: Tensor, quant_max: Tensor, gradient_scale: Tensor
) -> Tensor:
    """`learned_step` of plain torch operators, whose gradient autograd finds."""
    scaled = step * gradient_scale + (step * (1.0 - gradient_scale)).detach()
    value = torch.clamp(x * scaled.reciprocal(), quant_min - zero_point, quant_max - zero_point)
    return straight_through(value, value.detach().round()) * scaled


def straight_through(value: Tensor, quantized: Tensor) -> Tensor:
    """`quantized`, with the gradient of `value`."""
    return value + (quantized - value).detach()


def _is_dense(x: Tensor) -> bool:
    """Whether the elements fill their memory, in whatever order, so that they can be seen as one vector."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _vector(x: Tensor) -> Tensor:
    return x.view(-1) if x.is_contiguous() else x.permute(0, 2, 3, 1).view(-1)


class _PerTensor(torch.autograd.Function):
    """`learned_step` with one step for the tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: float, high: float, gradient_scale: float) -> Tensor:
        size = float(step)
        # By the float32 reciprocal, as the quantizers that are deployed do: dividing would round ties differently.
        y = torch.mul(x, float(step.reciprocal())).round_().clamp_(low, high).mul_(size)
        ctx.save_for_backward(x, y)
        ctx.size, ctx.low, ctx.high, ctx.gradient_scale = size, low, high, gradient_scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, y = ctx.saved_tensors
        # One pass; its ends are exclusive, those of the clamp are not.
        low, high = _below(ctx.low * ctx.size), -_below(-ctx.high * ctx.size)
        passed = torch.ops.aten.hardtanh_backward(gradient, x, low, high)
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None, None
        # y is step * level, so that inside (round(v) - v) = (y - x) / step and outside the level is y / step.
        total = _dot(gradient, y) - _dot(passed, x)
        return passed, total * (ctx.gradient_scale / ctx.size), None, None, None


def _below(value: float) -> float:
    """A float32 just below `value`, by more than the rounding of a product."""
    return value - max(abs(value) * 1e-6, math.ulp(0.0))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products; several times faster as a dot product of vectors than as a product and a sum."""
    if a.stride() != b.stride() or not _is_dense(a):
        return (a * b).sum()
    return torch.dot(_vector(a), _vector(b))
