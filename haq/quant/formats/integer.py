"""Integers: one scale for a tensor, or one per row of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LARGEST_INTEGER_BITS = 16
"""Wider integers are simulated as float32 as it is: a float32 cannot tell more of their steps apart."""

HALF_TYPES = (torch.float16, torch.bfloat16)
"""Quantization is computed in float32 for models of these types: their own arithmetic rounds too coarsely."""


@dataclass(frozen=True, slots=True)
class PerTensorInteger:
    """Integers with one scale: clamp(round(x / scale) + zero_point, quant_min, quant_max).

    Bit for bit what `torch.fake_quantize_per_tensor_affine` returns on finite input, about fifteen times faster on CPU;
    where a gradient is wanted, that very operator runs (straight-through estimator).
    """

    scale: float
    zero_point: int
    quant_min: int
    quant_max: int

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype in HALF_TYPES:
            return self(x.float()).to(x.dtype)
        if x.requires_grad and torch.is_grad_enabled():
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.quant_min, self.quant_max)
        # torch multiplies by the float32 reciprocal; dividing would round differently on ties.
        y = torch.mul(x, _reciprocal(self.scale)).round_()
        y.clamp_(self.quant_min - self.zero_point, self.quant_max - self.zero_point)
        # 0 + scale * y in one pass, not scale * y: torch's operator never returns a negative zero.
        return torch.add(_zero(y), y, alpha=self.scale, out=y)

    @classmethod
    def from_doc(cls, doc: Mapping[str, Any]) -> PerTensorInteger:
        """Of what `to_doc` returned."""
        return cls(doc["scale"], doc["zero_point"], doc["quant_min"], doc["quant_max"])

    def to_doc(self) -> dict[str, Any]:
        limits = {"quant_min": self.quant_min, "quant_max": self.quant_max}
        return {"kind": "integer", "scale": self.scale, "zero_point": self.zero_point, **limits}

    def quantize(self, x: Tensor) -> Tensor:
        """The integer codes, int32."""
        codes = torch.mul(x, _reciprocal(self.scale)).round_().add_(self.zero_point)
        return codes.clamp_(self.quant_min, self.quant_max).to(torch.int32)


@dataclass(frozen=True, slots=True, eq=False)
class PerRowInteger:
    """Integers with one scale and zero point per row of a matrix, each `[rows, 1]`.

    Bit for bit `torch.fake_quantize_per_channel_affine` along axis 0 on finite input, where it rounds to the nearest.

    Attributes:
        rounding: `nearest` (ties to even), `floor`, `ceil` or `stochastic`.
        seed: of stochastic rounding, whose draws depend on it and on the shape alone.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    rounding: str = "nearest"
    seed: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return self._with_gradient(x)
        # Clamping between numbers is several times faster than between tensors.
        y = self._rounded(x * self.scale.reciprocal()).add_(self.zero_point)
        return y.clamp_(self.quant_min, self.quant_max).sub_(self.zero_point).mul_(self.scale)

    def integer_codes(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.quantize(rows), self.scale, self.zero_point.to(torch.int32)

    def quantize(self, x: Tensor) -> Tensor:
        """The integer codes, int32."""
        codes = self._rounded(x * self.scale.reciprocal()) + self.zero_point
        return codes.clamp_(self.quant_min, self.quant_max).to(torch.int32)

    def _rounded(self, steps: Tensor) -> Tensor:
        """In place. Stochastic rounding goes up with the probability of the fraction: right on average."""
        if self.rounding == "nearest":
            return steps.round_()
        if self.rounding == "ceil":
            return steps.ceil_()
        if self.rounding == "stochastic":
            generator = torch.Generator().manual_seed(self.seed)
            steps += torch.rand(steps.shape, generator=generator, dtype=steps.dtype).to(steps.device)
        return steps.floor_()

    def _with_gradient(self, x: Tensor) -> Tensor:
        if self.rounding == "nearest":
            zero_point = self.zero_point.flatten().to(torch.int32)
            return torch.fake_quantize_per_channel_affine(
                x, self.scale.flatten(), zero_point, 0, self.quant_min, self.quant_max
            )
        low, high = ((limit - self.zero_point) * self.scale for limit in (self.quant_min, self.quant_max))
        inside = torch.where(x > high, high, torch.where(x < low, low, x))
        return inside + (self(x.detach()) - inside).detach()


def integer_limits(bits: int, scheme: str) -> tuple[int, int]:
    """The smallest and the largest code of an integer format.

    Symmetric codes use the full range, -2^(b-1) to 2^(b-1) - 1: at every scale their levels include those of the
    narrow range (without -2^(b-1)), so with a searched scale their error is never larger; at 2 bits the fourth level
    takes about a fifth off the error of Gaussian weights. Affine codes run from 0 to 2^b - 1.
    """
    if scheme == "symmetric":
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def _reciprocal(scale: float) -> float:
    return float(torch.tensor(scale, dtype=torch.float32).reciprocal())


def _zero(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=like.dtype, device=like.device)
