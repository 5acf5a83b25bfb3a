"""Trainable quantizers of ternary, binary and float formats."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from haq.quant.formats.base import Quantizer
from haq.quant.formats.binary import Binary, binary_quantizer
from haq.quant.formats.half import Cast, Identity
from haq.quant.formats.integer import PerTensorInteger
from haq.quant.formats.ternary import Ternary, ternary_quantizer
from haq.training.gradients import learned_sign, learned_step, straight_through
from haq.training.learned_quantizers import TrainableQuantizer
from haq.values.errors import InputError

_TINY = 1e-8


class Untouched(TrainableQuantizer):
    """fp32, and integers too wide to be told from it."""

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return x

    def fixed(self, values: Tensor) -> Quantizer:
        return Identity()


class HalfFloat(TrainableQuantizer):
    """fp16 or bf16; the gradient passes."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        assert isinstance(calibrated, Cast)

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).to(x.dtype)

    def fixed(self, values: Tensor) -> Quantizer:
        return Cast(self.dtype)


class TernaryWeight(TrainableQuantizer):
    """Ternary weight networks (Li et al. 2016): threshold and scale follow the weights; the gradient passes."""

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            quantized = ternary_quantizer(x)(x)
        return straight_through(x, quantized)

    def fixed(self, values: Tensor) -> Quantizer:
        return ternary_quantizer(values)


class TrainedTernaryWeight(TrainableQuantizer):
    """Trained ternary quantization (Zhu et al., ICLR 2017): a learned scale for each sign, by row.

    The scales' gradients are sums over the weights they stand for; a weight's own is scaled by the scale it is held
    with, and passes as it is around zero (equations 7 and 8). The threshold is TWN's, 0.7 E|w|, which follows the
    weights; the paper's 0.05 max|w| leaves hardly a zero in a trained row.

    Attributes:
        scales: `[rows, 2]`, of positive and negative weights.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.ones(rows, 2))

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        with torch.no_grad():
            threshold = ternary_quantizer(values).threshold
            for column, size in enumerate((values, -values)):
                above = size > threshold
                mean = (size * above).sum(1) / above.sum(1).clamp(min=1)
                self.scales[:, column] = mean.clamp(min=_TINY)

    def forward(self, x: Tensor) -> Tensor:
        threshold = ternary_quantizer(x.detach()).threshold
        positive, negative = x > threshold, x < -threshold
        up, down = self.scales[:, :1], self.scales[:, 1:]
        held = torch.where(positive, up, torch.where(negative, -down, torch.zeros_like(x)))
        slope = torch.where(positive, up, torch.where(negative, down, torch.ones_like(x))).detach()
        return held + slope * (x - x.detach())

    def bounded(self) -> None:
        with torch.no_grad():
            self.scales.clamp_(min=_TINY)

    def fixed(self, values: Tensor) -> Quantizer:
        raise InputError(
            "trained ternary weights have a scale for each sign, which integers times one scale cannot hold; use "
            "evaluator.qat.ternary = 'twn'"
        )


class BinaryWeight(TrainableQuantizer):
    """XNOR-Net's weights (Rastegari et al., ECCV 2016, equation 6): sign(w) E|w| by row.

    The gradient passes to weights in [-1, 1], as through BinaryConnect's sign; that of the scale, of which the paper
    takes one n-th, is left out.
    """

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            quantized = binary_quantizer(x)(x)
        return straight_through(x.clamp(-1.0, 1.0), quantized)

    def fixed(self, values: Tensor) -> Quantizer:
        return binary_quantizer(values)


class BinaryActivation(TrainableQuantizer):
    """-scale or +scale by the sign; the scale is learned, the gradient passes within [-scale, scale]."""

    gradient_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("gradient_scale", torch.ones(()))

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        assert isinstance(calibrated, Binary)
        with torch.no_grad():
            self.scale.fill_(float(calibrated.scale))
            self.gradient_scale.fill_(1.0 / values.numel() ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return learned_sign(x, self.scale, self.gradient_scale)

    def bounded(self) -> None:
        with torch.no_grad():
            self.scale.abs_().clamp_(min=_TINY)

    def fixed(self, values: Tensor) -> Quantizer:
        return Binary(torch.tensor(float(self.scale.detach())))


class TernaryActivation(TrainableQuantizer):
    """-scale, 0 or +scale on a learned step: the integers -1 to 1, whose threshold is half a step."""

    gradient_scale: Tensor
    limits: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.ones(()))
        self.register_buffer("gradient_scale", torch.ones(()))
        self.register_buffer("limits", torch.tensor([-1.0, 0.0, 1.0]))

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        assert isinstance(calibrated, Ternary)
        with torch.no_grad():
            self.step.fill_(float(calibrated.scale))
            self.gradient_scale.fill_(1.0 / values.numel() ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        low, zero, high = self.limits.unbind()
        return learned_step(x, self.step, zero, low, high, self.gradient_scale)

    def bounded(self) -> None:
        with torch.no_grad():
            self.step.abs_().clamp_(min=_TINY)

    def fixed(self, values: Tensor) -> Quantizer:
        low, zero, high = (int(level) for level in self.limits)
        return PerTensorInteger(float(self.step.detach()), zero, low, high)
