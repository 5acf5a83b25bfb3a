"""Fake quantization with gradients, written to move and to keep as little memory as eager torch can.

The functions here keep their input only, which the layer before keeps anyway; what they return is made again from it
where a gradient needs it. Half-precision tensors are computed in float32 and come back as they were.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from haq.quant.formats.integer import HALF_TYPES

_Bound = float | Tensor


def learned_step(
    x: Tensor,
    step: Tensor,
    zero_point: Tensor,
    quant_min: Tensor,
    quant_max: Tensor,
    gradient_scale: Tensor,
    *,
    sees_rounding: bool = True,
) -> Tensor:
    """step * (clamp(round(x / step) + zero_point, quant_min, quant_max) - zero_point), straight through.

    Esser et al., "Learned step size quantization" (ICLR 2020), equations 1 to 5: the gradient passes to `x` where it is
    not clipped; the step's is round(v) - v inside, with v = x / step, and the clipped level outside, times
    `gradient_scale`. Without `sees_rounding` it is 0 inside, as in PACT (Choi et al. 2018, equation 3).

    All arguments but `x` are 0-d, or `[rows, 1]` for `x [rows, n]`. A compiler gets plain operators to fuse.
    """
    if torch.compiler.is_compiling():
        return composed_step(x, step, zero_point, quant_min, quant_max, gradient_scale, sees_rounding=sees_rounding)
    low, high = quant_min - zero_point, quant_max - zero_point
    result: Tensor = _LearnedStep.apply(x, step, low, high, gradient_scale, sees_rounding)  # type: ignore[no-untyped-call]
    return result


def composed_step(
    x: Tensor,
    step: Tensor,
    zero_point: Tensor,
    quant_min: Tensor,
    quant_max: Tensor,
    gradient_scale: Tensor,
    *,
    sees_rounding: bool = True,
) -> Tensor:
    """`learned_step` of plain torch operators, whose gradient autograd finds."""
    dtype, x = x.dtype, _wide(x)
    low, high = quant_min - zero_point, quant_max - zero_point
    scaled = step * gradient_scale + (step * (1.0 - gradient_scale)).detach()
    if sees_rounding:
        value = torch.clamp(x * scaled.reciprocal(), low, high)
        return (straight_through(value, value.detach().round()) * scaled).to(dtype)
    clipped = torch.minimum(torch.maximum(x, low * scaled), high * scaled)
    return straight_through(clipped, _quantized(x.detach(), step.detach(), low, high)).to(dtype)


def straight_through(value: Tensor, quantized: Tensor) -> Tensor:
    """`quantized`, with the gradient of `value`."""
    return value + (quantized - value).detach()


def learned_sign(x: Tensor, scale: Tensor, gradient_scale: Tensor) -> Tensor:
    """-scale or +scale by the sign of `x`, zero counting as positive; all but `x` are 0-d.

    The gradient passes to `x` within [-scale, scale]; the scale's, the sum of those signs that it stands for, is
    multiplied by `gradient_scale`.
    """
    if not torch.compiler.is_compiling():
        result: Tensor = _LearnedSign.apply(x, scale, gradient_scale)  # type: ignore[no-untyped-call]
        return result
    dtype, x = x.dtype, _wide(x)
    scaled = scale * gradient_scale + (scale * (1.0 - gradient_scale)).detach()
    inside = (x.abs() <= scale).to(x.dtype)
    return (_sign(x.detach()) * scaled + inside * (x - x.detach())).to(dtype)


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, low: Tensor, high: Tensor, gradient_scale: Tensor, sees_rounding: bool
    ) -> Tensor:
        ctx.save_for_backward(x)
        # A step that the optimizer moves before the gradient is asked for must not change it: hence a copy.
        ctx.step, ctx.low, ctx.high = step.detach().clone(), _number(low), _number(high)
        ctx.gradient_scale, ctx.sees_rounding = gradient_scale, sees_rounding
        ctx.again = None  # the result, if a layer that read it has made it again by the time of the gradient
        return _quantized(_wide(x), ctx.step, ctx.low, ctx.high).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,) = ctx.saved_tensors
        x, gradient = _wide(given), _wide(gradients[0])
        passed = _passed(gradient, x, ctx.step, ctx.low, ctx.high)
        again, ctx.again, on_step = ctx.again, None, None
        if ctx.needs_input_grad[1]:
            # y is step * level: inside, round(v) - v = (y - x) / step; outside, the level is y / step.
            y = _quantized(x, ctx.step, ctx.low, ctx.high) if again is None else _wide(again)
            total = _dot(gradient, y, ctx.step) - _dot(passed, x if ctx.sees_rounding else y, ctx.step)
            on_step = total * (ctx.gradient_scale / ctx.step)
        return passed.to(given.dtype), on_step, None, None, None, None


class _LearnedSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, gradient_scale: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale, ctx.gradient_scale = scale.detach().clone(), gradient_scale
        result: Tensor = (_sign(_wide(x)) * ctx.scale).to(x.dtype)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,) = ctx.saved_tensors
        x, gradient = _wide(given), _wide(gradients[0])
        passed = _passed(gradient, x, ctx.scale, -1.0, 1.0)
        return passed.to(given.dtype), _dot(gradient, _sign(x), ctx.scale) * ctx.gradient_scale, None


def _quantized(x: Tensor, step: Tensor, low: _Bound, high: _Bound) -> Tensor:
    # By the float32 reciprocal, as the quantizers that are deployed do: dividing would round ties differently.
    return torch.mul(x, step.reciprocal()).round_().clamp_(low, high).mul_(step)  # type: ignore[arg-type]


def _sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def _passed(gradient: Tensor, x: Tensor, step: Tensor, low: _Bound, high: _Bound) -> Tensor:
    """`gradient` where x / step is within [low, high], else 0."""
    if isinstance(low, float) and isinstance(high, float) and step.dim() == 0 and step.device.type == "cpu":
        # One pass; its ends are exclusive, those of the clamp are not.
        size = float(step)
        ends = _below(low * size), -_below(-high * size)
        return torch.ops.aten.hardtanh_backward(gradient, x, *ends)  # type: ignore[no-any-return]
    value = x * step.reciprocal()
    return gradient * ((value >= low) & (value <= high))


def _number(bound: Tensor) -> _Bound:
    """A number where that costs nothing: clamping between numbers is several times faster than between tensors."""
    return float(bound) if bound.dim() == 0 and bound.device.type == "cpu" else bound


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF_TYPES else x


def _below(value: float) -> float:
    """A float32 just below `value`, by more than the rounding of a product."""
    return value - max(abs(value) * 1e-6, math.ulp(0.0))


def _dot(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Sum of products: all of them, or where `like` is `[rows, 1]` those of each row."""
    if like.dim():
        return (a * b).sum(1, keepdim=True)
    if a.stride() != b.stride() or not _is_dense(a):
        return (a * b).sum()
    # Several times faster than a product and a sum.
    return torch.dot(_vector(a), _vector(b))


def _is_dense(x: Tensor) -> bool:
    """Whether the elements fill their memory, in whatever order, so that they can be seen as one vector."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _vector(x: Tensor) -> Tensor:
    return x.view(-1) if x.is_contiguous() else x.permute(0, 2, 3, 1).view(-1)
