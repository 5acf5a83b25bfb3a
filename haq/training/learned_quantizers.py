"""Trainable quantizers of integer formats. The format is held in tensors, so that one captured step serves them all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from haq.quant.formats.base import Quantizer
from haq.quant.formats.integer import PerRowInteger, PerTensorInteger
from haq.training.gradients import learned_step, straight_through

_TINY = 1e-8


class TrainableQuantizer(nn.Module):
    """Fake quantization with gradients, of weights as a matrix `[rows, n]` or of an activation as it is.

    Parameters are what is learned beside the weights; `start` sets them, and the format, in place from a calibrated
    quantizer, so that optimizers and captured graphs stay valid.
    """

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        """Begin anew.

        Args:
            calibrated: of the format to train in.
            values: a weight's rows `[rows, n]`, or one sample of an activation, of which the size counts.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Fake quantization of `x`, in its type; half-precision activations are computed in float32."""
        raise NotImplementedError

    def bounded(self) -> None:
        """Bring parameters back to where they make sense; called after each step of the optimizer."""

    def fixed(self, values: Tensor) -> Quantizer:
        """What training has come to, as a quantizer that holds the values of `forward` and leaves them as they are.

        Args:
            values: a weight's rows as they are trained; of activations anything.

        Raises:
            InputError: no deployed format has such levels; says which and why.
        """
        raise NotImplementedError


class Integer(TrainableQuantizer):
    """An integer format: the limits of its codes and the zero point, which stay as calibrated, and its step.

    Attributes:
        step: 0-d, or `[rows, 1]` for weights.
    """

    step: Tensor
    zero_point: Tensor
    quant_min: Tensor
    quant_max: Tensor

    learns_step = False

    def __init__(self, rows: int | None) -> None:
        super().__init__()
        step = torch.ones(() if rows is None else (rows, 1))
        if self.learns_step:
            self.step = nn.Parameter(step)
        else:
            self.register_buffer("step", step)
        self.register_buffer("zero_point", torch.zeros_like(step))
        self.register_buffer("quant_min", torch.zeros(()))
        self.register_buffer("quant_max", torch.zeros(()))
        self.register_buffer("gradient_scale", torch.ones(()))

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        assert isinstance(calibrated, PerRowInteger | PerTensorInteger)
        with torch.no_grad():
            for name in ("quant_min", "quant_max"):
                getattr(self, name).fill_(getattr(calibrated, name))
            _set(self.step, calibrated.scale)
            _set(self.zero_point, calibrated.zero_point)

    def bounded(self) -> None:
        if self.learns_step:
            with torch.no_grad():
                self.step.abs_().clamp_(min=_TINY)

    def fixed(self, values: Tensor) -> Quantizer:
        step, limits = self.trained_step().detach().clone(), (int(self.quant_min), int(self.quant_max))
        if step.dim():
            return PerRowInteger(step, self.zero_point.clone(), *limits)
        return PerTensorInteger(float(step), int(self.zero_point), *limits)

    def trained_step(self) -> Tensor:
        """The distance between two levels, shaped like `step`."""
        return self.step


class StraightThrough(Integer):
    """The calibrated step for good; the gradient passes where nothing is clipped (Bengio et al. 2013).

    For activations also DoReFa-Net's quantizer (Zhou et al. 2016, equation 5), whose fixed range [0, 1] is the
    calibrated one here.
    """

    gradient_scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return learned_step(x, self.step.detach(), self.zero_point, self.quant_min, self.quant_max, self.gradient_scale)


class LearnedStep(Integer):
    """Learned step size (LSQ; Esser et al., ICLR 2020), with the gradient scale 1 / sqrt(n * quant_max).

    n counts the values that share a step: weights of a row, or elements of one sample of an activation. Codes count
    from the zero point, so that an affine activation is LSQ's unsigned one where the zero point is 0.
    """

    gradient_scale: Tensor
    learns_step = True

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        super().start(calibrated, values)
        count = values.shape[1] if self.step.dim() else values.numel()
        self.gradient_scale.fill_(1.0 / (count * max(1.0, float(self.quant_max))) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return learned_step(x, self.step, self.zero_point, self.quant_min, self.quant_max, self.gradient_scale)


class PACT(Integer):
    """Parameterized clipping (Choi et al. 2018, equations 1 to 3): the clipping level is learned, rounding is not seen.

    The gradient of the level is that of the values at or above it. Where the range has a negative end, that end is at
    a fixed ratio to the level and adds its share. Weight decay acts on the level, as in the paper.

    Attributes:
        level: 0-d or `[rows, 1]`: the largest value that can be held.
    """

    gradient_scale: Tensor

    def __init__(self, rows: int | None) -> None:
        super().__init__(rows)
        self.level = nn.Parameter(torch.ones_like(self.step))

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        super().start(calibrated, values)
        with torch.no_grad():
            self.level.copy_(self.step * self._levels_above())

    def _levels_above(self) -> Tensor:
        return (self.quant_max - self.zero_point).clamp(min=1.0)

    def forward(self, x: Tensor) -> Tensor:
        step = self.trained_step()
        return learned_step(
            x, step, self.zero_point, self.quant_min, self.quant_max, self.gradient_scale, sees_rounding=False
        )

    def trained_step(self) -> Tensor:
        return self.level / self._levels_above()

    def bounded(self) -> None:
        with torch.no_grad():
            self.level.abs_().clamp_(min=_TINY)


class DoReFa(Integer):
    """DoReFa-Net's weights (Zhou et al. 2016, equation 9): tanh, scaled to [-1, 1], on an even grid without zero.

    The network was trained before, so a fixed factor per row, fitted to its weights at the start, brings them back to
    their size. The 2^b levels are odd multiples of half a step: a device needs them as 2 q - (2^b - 1).
    """

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        super().start(calibrated, values)
        with torch.no_grad():
            self.step.fill_(1.0)
            codes = self(values)
            factor = (codes * values).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True).clamp(min=_TINY)
            self.step.copy_(factor.clamp(min=_TINY))

    def forward(self, x: Tensor) -> Tensor:
        levels = self.quant_max - self.quant_min
        squashed = torch.tanh(x)
        unit = squashed / (2.0 * squashed.abs().max().clamp(min=_TINY)) + 0.5
        return self.step * (2.0 * straight_through(unit, (unit.detach() * levels).round() / levels) - 1.0)

    def fixed(self, values: Tensor) -> Quantizer:
        """Odd codes of one bit more, in half steps: the levels themselves are no integers."""
        levels = int(self.quant_max - self.quant_min)
        return PerRowInteger(self.step / levels, torch.zeros_like(self.step), -levels, levels)


def _set(target: Tensor, value: float | Tensor) -> None:
    if isinstance(value, Tensor):
        target.copy_(value.reshape(target.shape))
    else:
        target.fill_(value)
